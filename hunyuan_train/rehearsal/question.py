"""What the command asks of the process that rehearses."""

from dataclasses import dataclass

from hunyuan_train.config.resolved_run import ResolvedRun

DOCUMENTS = 6  # of a rehearsed row


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is to be rehearsed."""

    run: ResolvedRun  # for machines with GPUs
    skew: float  # rows that this rank's experts get over an equal share
    gpu_memory: int  # bytes of a GPU
    parts: frozenset[str]  # besides steps
    guard: str  # a library to be loaded before torch
    micro_steps: int = 1  # of the step that is counted
    hook: str = ""  # a module to import first; tests plant faults by one
