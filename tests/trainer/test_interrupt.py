"""All ranks stop after the same step, for a signal to any of them or at the end of their time."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from hunyuan_train.checkpoint.folder import list_checkpoints, read_manifest
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.trainer.interrupt import (
    HEEDED,
    StopRequest,
    agree_to_stop,
    heeding_signals,
)
from tests.looped import Looped, run_loop
from tests.ranks import run_ranks


def stop_by_signal(number: int) -> tuple[bool, bool]:
    """Whether this rank is to stop before, and after, the last rank got a signal."""
    start_process_group(timeout_minutes=2)
    with heeding_signals(time.monotonic(), 0.0) as request:
        before = agree_to_stop(request, 0.0, device="cpu")
        if dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), number)
        return before, agree_to_stop(request, 0.0, device="cpu")


@pytest.mark.parametrize("number", [int(number) for number in HEEDED])
def test_a_signal_to_one_rank_stops_all(number: int) -> None:
    assert run_ranks(stop_by_signal, 3, number) == [(False, True)] * 3


def test_the_time_includes_what_comes_next() -> None:
    request = StopRequest(started=time.monotonic() - 3000, max_hours=1.0)
    assert not request.is_due(500)
    assert request.is_due(700)
    assert not StopRequest(started=0.0, max_hours=0.0).is_due(1e9)


def test_a_signal_passed_on_twice_counts_once_and_a_second_one_ends() -> None:
    child = os.fork()
    if child == 0:
        with heeding_signals(time.monotonic(), 0.0):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        os._exit(0)
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert 0.5 < time.monotonic() - began < 5


def test_a_run_out_of_time_saves_where_it_stands(tmp_path: Path) -> None:
    settings = {"max_steps": 10**6, "max_hours": 3 / 3600}
    ranks: list[Looped] = run_ranks(run_loop, 2, tmp_path, settings, (), None)
    for rank in ranks:
        assert not rank.result.is_complete
        assert rank.result.is_saved
        assert rank.seen == ranks[0].seen
    [checkpoint] = list_checkpoints(tmp_path)
    assert read_manifest(checkpoint)["state"]["step"] == len(ranks[0].seen)
