"""Reasons to stop between two steps: a signal, or the end of the time that the run was given.

All ranks stop after the same step, because they agree on it: one number summed over them a step.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from hunyuan_train.parallel.engine import max_over_ranks, sum_over_ranks

logger = logging.getLogger(__name__)

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SAME_SECONDS = 0.5  # launchers may pass the same signal on twice


@dataclass(slots=True)
class StopRequest:
    """Whether this rank has reason to stop."""

    started: float  # time.monotonic() of the run
    max_hours: float  # 0: no limit
    received: signal.Signals | None = None
    received_at: float = 0.0

    def is_due(self, reserve_seconds: float) -> bool:
        """Whether to stop now, if what comes next takes so many seconds."""
        passed = time.monotonic() - self.started + reserve_seconds
        return self.received is not None or bool(self.max_hours and passed > self.max_hours * 3600)


@contextmanager
def heeding_signals(started: float, max_hours: float) -> Iterator[StopRequest]:
    """Take the first signal as a request, and the second one as it is usually meant."""
    request = StopRequest(started, max_hours)

    def note(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        is_repeated = number == signal.SIGHUP or now - request.received_at < SAME_SECONDS
        if request.received and is_repeated:  # a terminal that closes sends SIGHUP more than once
            return
        if request.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.received, request.received_at = signal.Signals(number), now
        logger.info("asked to stop: finishing the step, then saving")

    # What is ignored stays ignored: `nohup` means to outlive the terminal.
    heeded = [number for number in HEEDED if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agree_to_stop(request: StopRequest, reserve_seconds: float, device: torch.device) -> bool:
    """Whether any rank has reason to stop; the same answer on every rank."""
    return sum_over_ranks([float(request.is_due(reserve_seconds))], device)[0] > 0


def agree_that_signalled(request: StopRequest, device: torch.device) -> bool:
    """Whether any rank was asked to stop, however much of its time is left; the same on all."""
    return sum_over_ranks([float(request.received is not None)], device)[0] > 0


def seconds_until_killed(
    request: StopRequest, device: torch.device, *, grace_seconds: float, reserve_seconds: float
) -> float:
    """What is left of the time that ranks have after a signal; the same on all of them.

    Args:
        request: of a run of which at least one rank was signalled.
        device: for the collective.
        grace_seconds: from the signal on.
        reserve_seconds: what must be left over.
    """
    passed = time.monotonic() - request.received_at if request.received else 0.0
    return grace_seconds - max_over_ranks([passed + reserve_seconds], device)[0]
