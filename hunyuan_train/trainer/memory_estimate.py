"""The plan of a run that is going on: to be recorded, and to be compared with what is measured."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import GPUS, GpuModel, Hardware
from hunyuan_train.planner.text import as_json

SPEEDS = ("sent_per_step", "step_seconds", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What was foreseen."""

    memory_gib: float  # of the fullest process, as `peak_memory_gib` counts
    content: dict[str, Any]  # all of it, as `plan --json` writes it; speeds where the GPU is known

    def to_json(self) -> dict[str, Any]:
        """How it is recorded."""
        return {"memory_gib": self.memory_gib, **self.content}


def find_gpu() -> GpuModel | None:
    """Data-sheet speeds of this process's GPU; None where they are not known, as on a CPU."""
    if not torch.cuda.is_available():
        return None
    return find_named(torch.cuda.get_device_name())


def find_named(name: str) -> GpuModel | None:
    """The GPU of a driver's name, such as `NVIDIA GeForce RTX 4090`; `NVIDIA H200` is no `h20`."""
    words = re.split(r"[\s-]+", name.lower().replace("rtx 4090", "rtx4090"))
    if {"laptop", "d"} & set(words):  # slower chips under the same name
        return None
    return next((GPUS[word] for word in words if word in GPUS), None)


def estimate_here(run: ResolvedRun, *, num_data_tokens: int) -> RunEstimate:
    """Plan this run on the processes that it has."""
    gpu = find_gpu()
    hardware = Hardware(gpu=gpu or GPUS["h100"])
    estimate = estimate_run(run, hardware, num_data_tokens=num_data_tokens)
    memory = estimate.memory
    peak = memory.allocated_peak if run.is_on_gpu else memory.process_peak
    content = as_json(estimate, None)
    unknown = () if gpu else SPEEDS
    unknown = ("fits", "shortages", "nearest", *unknown)  # limits were judged before the start
    known = {name: value for name, value in content.items() if name not in unknown}
    if run.is_on_gpu and torch.cuda.is_available():
        known["gpu_memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
    return RunEstimate(peak / 2**30, known)
