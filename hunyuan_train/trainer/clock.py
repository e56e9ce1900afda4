"""Where the time of a step goes.

On a GPU the parts are measured by events on its stream, so that nothing waits for the sake of being
measured; they are read when the step has been waited for anyway.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The last lies within the others: see parallel/collective_timers.py.
PARTS = ("data", "forward", "backward", "optimizer", "communication")


class StepClock:
    """Adds up the seconds of each part of a step."""

    def __init__(self) -> None:
        self.is_on_gpu = torch.cuda.is_available()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure one stretch of a part."""
        if self.is_on_gpu and name != "data":  # which is read by the CPU
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call, as they are logged; call it after the step."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        taken = {f"seconds_{name}": seconds for name, seconds in self._seconds.items()}
        self._events = []
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return taken
