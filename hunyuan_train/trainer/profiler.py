"""Traces of chosen steps: what ran when, on every rank, and a short table of what took longest."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)

FOLDER = "profile"
MAX_ROWS = 25
# How the libraries of collectives call their work, on the GPU and on the CPU.
COMMUNICATION = ("nccl", "gloo", "c10d::")


def profile_nothing(_: int) -> AbstractContextManager[None]:
    """Trace no step."""
    return nullcontext()


class StepProfiler:
    """Records the steps from `first` to `last`; every rank has one."""

    def __init__(self, first: int, last: int, output_dir: Path) -> None:
        self.first = first
        self.last = last
        self.folder = output_dir / FOLDER
        self.is_recording = False
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.recorder = profile(activities=activities, profile_memory=True)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record one step, if it is among the chosen ones; write the trace after the last."""
        if self.first <= step <= self.last and not self.is_recording:  # a resumed run begins late
            self.recorder.start()
            self.is_recording = True
        yield
        if step == self.last and self.is_recording:
            self.recorder.stop()
            self.is_recording = False
            self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"rank{dist.get_rank()}"
        self.recorder.export_chrome_trace(str(self.folder / f"{stem}.json.gz"))
        averages = self.recorder.key_averages()
        on_gpu = torch.cuda.is_available()
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=MAX_ROWS, max_name_column_width=60)
        spent = {
            one.key: one.self_device_time_total if on_gpu else one.self_cpu_time_total
            for one in averages
        }
        shared = [
            microseconds
            for name, microseconds in spent.items()
            if any(word in name.lower() for word in COMMUNICATION)
        ]
        num_steps = self.last - self.first + 1
        whole, part = (sum(one) / num_steps / 1e6 for one in (spent.values(), shared))
        head = (
            f"steps {self.first} to {self.last}: {whole:.3f} s of work in a step, "
            f"{part:.3f} s of it in collectives\n"
        )
        (self.folder / f"{stem}.txt").write_text(head + table + "\n", encoding="utf-8")
        logger.info("profile of steps %d to %d: %s", self.first, self.last, self.folder)
