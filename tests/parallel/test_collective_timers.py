"""Collectives of the engine are timed where they are waited for, and change nothing."""

import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.comm import comm

from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.collective_timers import COLLECTIVES, TimedWork, timing_collectives
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import my_share, small_engine
from tests.ranks import run_ranks

LATE_SECONDS = 0.4


def train_timed() -> dict[str, Any]:
    """Two steps, timed and not, and one to which the second rank comes late within forward."""
    engine = small_engine(stage=3, expert_size=2)
    clock = StepClock()
    timed = partial(clock.part, "communication")
    batches = my_share(global_batch(0, 2))
    with timing_collectives(timed):
        first = train_step(engine, SFT, batches, learning_rate=0.0, clock=clock)
    seconds = clock.take()
    plain = train_step(engine, SFT, batches, learning_rate=0.0, clock=clock)
    untimed = clock.take()

    def come_late(*_: object) -> None:
        time.sleep(LATE_SECONDS if dist.get_rank() else 0)

    engine.module.model.layers[0].register_forward_pre_hook(come_late)
    with timing_collectives(timed):
        train_step(engine, SFT, batches, learning_rate=0.0, clock=clock)
    return {
        "losses": (first.loss, plain.loss),
        "seconds": seconds,
        "untimed": untimed,
        "late": clock.take(),
        "left": [name for name in COLLECTIVES if name in vars(comm.cdb)],
    }


def test_waiting_for_others_is_communication() -> None:
    on_time, late = run_ranks(train_timed, 2)
    for rank in (on_time, late):
        parts = rank["seconds"]
        assert parts["seconds_communication"] > 0
        assert parts["seconds_communication"] < sum(parts.values()) / 2 + 1e-3  # lies within them
        assert rank["untimed"]["seconds_communication"] == 0
        assert rank["losses"][0] == rank["losses"][1]
        assert rank["left"] == []
    waited = on_time["late"]["seconds_communication"] - late["late"]["seconds_communication"]
    assert waited > LATE_SECONDS / 4  # the hook runs again where the layer is recomputed


def begin_and_wait() -> tuple[float, bool]:
    small_engine(stage=3, expert_size=2)
    clock = StepClock()
    values = torch.ones(3)
    with timing_collectives(partial(clock.part, "communication")):
        work = comm.all_reduce(values, async_op=True)
        time.sleep(LATE_SECONDS if dist.get_rank() else 0)
        work.wait()
        known = isinstance(work, TimedWork) and work.is_completed()
    return clock.take()["seconds_communication"], known


def test_a_collective_that_goes_on_beside_computing_counts_while_it_is_waited_for() -> None:
    for seconds, is_completed in run_ranks(begin_and_wait, 2):
        assert is_completed
        assert seconds < LATE_SECONDS / 2
