"""What the launcher takes from torch's private names: timeouts of all groups, last collectives."""

import os
import time

import pytest

from tests.ranks import run_ranks

SECONDS = 6.0


def wait_in_vain(group_maker: str) -> tuple[float, str]:
    """Rank 0 waits for a rank that does not come, in a group of the engine's own."""
    import deepspeed
    import torch
    import torch.distributed as dist

    from hunyuan_train.parallel.engine import start_process_group

    start_process_group(SECONDS / 60)
    group = deepspeed.comm.new_group([0, 1]) if group_maker == "deepspeed" else dist.new_group()
    dist.barrier()
    began = time.monotonic()
    if dist.get_rank() == 1:
        time.sleep(SECONDS + 10)
        return 0.0, ""
    with pytest.raises(RuntimeError) as caught:
        dist.all_reduce(torch.ones(1), group=group)
    return time.monotonic() - began, str(caught.value)


@pytest.mark.parametrize("group_maker", ["deepspeed", "torch"])
def test_a_collective_that_waits_too_long_ends_in_every_group(group_maker):
    seconds, words = run_ranks(wait_in_vain, 2, group_maker)[0]
    assert SECONDS - 1 < seconds < SECONDS + 6
    assert "imed out" in words


def ask_for_collectives() -> list[str]:
    """What is said before and after collectives."""
    os.environ["TORCH_FR_BUFFER_SIZE"] = "100"
    import torch
    import torch.distributed as dist

    from hunyuan_train.parallel.engine import last_collective, start_process_group

    start_process_group(1)
    said = [last_collective()]
    dist.all_reduce(torch.ones(3))
    said.append(last_collective())
    dist.barrier()
    return [*said, last_collective()]


def test_each_rank_knows_its_last_collective():
    ranks = run_ranks(ask_for_collectives, 2)
    assert ranks[0] == ranks[1]
    _, reduced, met = ranks[0]
    assert reduced.split()[1:3] == ["gloo:all_reduce", "[[3]]"]
    assert "gloo:barrier" in met
    assert int(met.split()[0]) == int(reduced.split()[0]) + 1
