"""The process group, what torch says of it, and the start of an engine over a split model."""

import json
import os
import time
from typing import Any, NamedTuple

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d

from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.launcher.rank.collectives import Collective, read_collectives
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel import assemble
from hunyuan_train.parallel.engine import (
    max_over_ranks,
    read_recorders,
    start_process_group,
    sum_over_ranks,
)
from hunyuan_train.parallel.zero import read_state, trained_shards
from tests.batches import plain_model, released_state
from tests.engines import small_engine
from tests.launcher.nccl_recorder import Recorder
from tests.ranks import run_ranks

SECONDS = 6.0


def wait_in_vain() -> list[tuple[float, str]]:
    """Rank 0 waits for a rank that does not come, in groups of the engine's and of torch's own."""
    start_process_group(SECONDS / 60)
    groups = [deepspeed.comm.new_group([0, 1]), dist.new_group()]
    dist.barrier()
    if dist.get_rank() == 1:
        time.sleep(len(groups) * SECONDS + 10)
        return []
    waited = []
    for group in groups:
        began = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            dist.all_reduce(torch.ones(1), group=group)
        waited.append((time.monotonic() - began, str(caught.value)))
    return waited


def test_a_collective_that_waits_too_long_ends_in_every_group() -> None:
    waited = run_ranks(wait_in_vain, 2)[0]
    assert len(waited) == 2
    for seconds, words in waited:
        assert SECONDS - 1 < seconds < SECONDS + 6
        assert "imed out" in words


def read_settled(num_waiting: int) -> list[Collective]:
    """What a rank says once gloo's threads, which are behind the waiting rank, have said it."""
    for _ in range(100):
        said = read_collectives(read_recorders(), now_ns=time.time_ns())
        if sum(not one.is_complete for one in said) == num_waiting:
            break
        time.sleep(0.05)
    return said


def ask_for_collectives() -> dict[str, Any]:
    """What is said before and after collectives, and what two of them give."""
    os.environ["TORCH_FR_BUFFER_SIZE"] = "100"
    start_process_group(1)
    said = [read_settled(0)]
    dist.all_reduce(torch.ones(3))
    said.append(read_settled(0))
    group = dist.new_group()
    dist.barrier()
    if dist.get_rank() == 0:
        work = dist.all_reduce(torch.ones(5), group=group, async_op=True)
    dist.barrier()
    said.append(read_settled(1 - dist.get_rank()))
    dist.barrier()  # or rank 1 comes while rank 0 still looks at how it waits
    if dist.get_rank() == 1:
        work = dist.all_reduce(torch.ones(5), group=group, async_op=True)
    work.wait()
    rank = dist.get_rank()
    numbers, device = [float(2**53 - 1 - rank), rank + 0.5], torch.device("cpu")
    return {
        "said": said,
        "traces": read_recorders(),
        "sums": sum_over_ranks([float(2**52), numbers[1]], device),
        "largest": max_over_ranks(numbers, device),
    }


@pytest.fixture(scope="module")
def collectives() -> list[dict[str, Any]]:
    return run_ranks(ask_for_collectives, 2)


def test_each_rank_knows_what_it_waits_in_and_what_it_has_completed(
    collectives: list[dict[str, Any]],
) -> None:
    for rank in collectives:
        before, (reduced,), _ = rank["said"]
        assert before == []
        assert (reduced.name, reduced.sizes, reduced.number) == ("gloo:all_reduce", [[3]], 1)
        assert (reduced.group, reduced.is_complete) == ("0 (default_pg)", True)
    waits, passed = collectives[0]["said"][2]
    assert (waits.name, waits.sizes, waits.number) == ("gloo:all_reduce", [[5]], 1)
    assert (waits.group, waits.is_complete) == ("1", False)
    assert 0 < waits.age_seconds < 60
    assert (passed.name, passed.number, passed.is_complete) == ("gloo:barrier", 3, True)
    assert [one.name for one in collectives[1]["said"][2]] == ["gloo:barrier"]


def test_the_stand_in_for_nccls_recorder_has_the_form_of_torchs_own(
    collectives: list[dict[str, Any]],
) -> None:
    (trace,) = map(json.loads, collectives[0]["traces"])
    recorder = Recorder({"0": [0, 1]})
    recorder.begin("0", "all_reduce", [3])
    stand_in = json.loads(recorder.dump_json())
    assert stand_in.keys() == trace.keys()
    assert stand_in["version"] == trace["version"]
    ours, theirs = stand_in["entries"][0], trace["entries"][0]
    assert {name: type(value) for name, value in ours.items()} == {
        name: type(value) for name, value in theirs.items()
    }
    for kind in ("pg_config", "pg_status"):
        keys = {
            tuple(one) for dump in (stand_in, trace) for one in map(sorted, dump[kind].values())
        }
        assert len(keys) == 1


def test_of_nccl_its_own_recorder_is_read_and_a_lost_gpu_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder({"0": [0, 1]})
    recorder.begin("0", "all_reduce", [3])
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(
        _distributed_c10d, "_dump_nccl_trace_json", lambda **_: recorder.dump_json(), raising=False
    )
    own, others = read_recorders()
    assert json.loads(own) == json.loads(recorder.dump_json())
    assert "version" in json.loads(others)

    def fail(**_: object) -> bytes:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(_distributed_c10d, "_dump_nccl_trace_json", fail)
    assert read_recorders() == [others]


def test_numbers_of_all_ranks_are_exact(collectives: list[dict[str, Any]]) -> None:
    for rank in collectives:
        assert rank["sums"] == [2.0**53, 2.0]
        assert rank["largest"] == [2.0**53 - 1, 1.5]


class Started(NamedTuple):
    """What a rank holds of a model that is being split, and the masters of its engine."""

    num_parameters: int  # of the whole model, before it is split
    expert_bytes: int  # allocated for experts then
    other_elements: int  # kept of all else then
    masters: dict[tuple[str, int], Tensor]  # by released tensor and first element, before any step


def start_split() -> Started:
    build, built = assemble.build_split_model, []

    def build_and_count(*arguments: Any, **settings: Any) -> Any:
        model = build(*arguments, **settings)
        experts = [one for name, one in model.named_parameters() if ".experts." in name]
        others = [one for name, one in model.named_parameters() if ".experts." not in name]
        built.append(sum(one.numel() for one in experts) + sum(one.ds_numel for one in others))
        built.append(sum(one.untyped_storage().nbytes() for one in experts))
        built.append(sum(one.ds_tensor.numel() for one in others))
        return model

    assemble.build_split_model = build_and_count
    engine = small_engine(stage=3, expert_size=2)
    return Started(
        *built,
        masters={
            (piece.tensor.name, piece.start): read_state(engine, shard, MASTER)[
                piece.offset : piece.offset + piece.stop - piece.start
            ].clone()
            for shard in trained_shards(engine.module)
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop)
        },
    )


def test_each_rank_builds_its_part_only_and_the_optimizer_copies_the_weights_that_were_read() -> (
    None
):
    plain = plain_model()
    expected = released_state(plain)
    num_experts = sum(one.numel() for name, one in plain.named_parameters() if ".experts." in name)
    num_seen = dict.fromkeys(expected, 0)
    for rank in run_ranks(start_split, 2):
        assert rank.num_parameters == sum(one.numel() for one in plain.parameters())
        assert rank.expert_bytes < num_experts / 1000
        assert rank.other_elements == pytest.approx(
            (rank.num_parameters - num_experts) / 2, rel=0.01
        )
        for (name, start), values in rank.masters.items():
            assert values.dtype == torch.float32
            assert torch.equal(values, expected[name].flatten()[start : start + len(values)]), name
            num_seen[name] += len(values)
    assert num_seen == {name: values.numel() for name, values in expected.items()}
