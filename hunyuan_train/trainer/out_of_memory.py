"""Says where memory went when it ran out, and which settings of this run take less of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.settings import FIELDS, with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.planner.memory import plan_memory
from hunyuan_train.planner.search import as_flag, method_choices

GIB = 2**30
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
AMOUNT = r"([\d.]+) (bytes|KiB|MiB|GiB)"
# The words of torch's allocator (c10/cuda/CUDACachingAllocator.cpp), by what they say of the GPU.
SAID = {
    "wanted": rf"Tried to allocate {AMOUNT}",
    "total": rf"total capacity of {AMOUNT}",
    "free": rf"of which {AMOUNT} is free",
    "own": rf"this process has {AMOUNT} memory in use",
    "allocated": rf"{AMOUNT} is allocated by PyTorch",
    "holes": rf"{AMOUNT} is reserved by PyTorch but unallocated",
}
OTHERS = rf"Process (\d+) has {AMOUNT} memory in use"
# Of the driver, which NCCL, cuBLAS and page-locked memory ask without torch's allocator.
DRIVER = ("CUDA error: out of memory", "Cuda failure 2 'out of memory'", "CUBLAS_STATUS_ALLOC")
HOST = ("can't allocate memory", "Cannot allocate memory")  # of torch's CPU allocator; of Linux
# What real fine-tuning sends to the busiest rank, over an equal share: the plan of most runs is
# made for less, and what runs out of memory in mid-training mostly does so by this.
SKEW = 3.0
MANY_CHUNKS = 8  # of experts: beyond, little is left of what they take


@dataclass(frozen=True, slots=True)
class Remedy:
    """Settings that take less memory than those of the run."""

    flags: str
    num_bytes: int  # so much less on a GPU, by the plan
    changes_steps: bool  # it is another training then, and not the same in other pieces


def explain_memory(error: BaseException, run: ResolvedRun) -> str | None:
    """Words on an error that says that memory ran out; None on any other."""
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{describe_allocator(said)} {describe_remedies(run, read_figures(said))}"
    if any(words in said for words in DRIVER):
        return (
            "GPU memory ran out outside of torch's allocator, in NCCL, cuBLAS or the driver: torch "
            f"held {torch.cuda.memory_reserved() / GIB:.2f} GiB of it, "
            f"{torch.cuda.memory_allocated() / GIB:.2f} of them in tensors. "
            f"{describe_remedies(run, {})}"
        )
    if isinstance(error, MemoryError) or any(words in said for words in HOST):
        return describe_host(run)
    return None


def read_figures(said: str) -> dict[str, int]:
    """The bytes that torch's allocator names in its error."""
    found = {name: re.search(pattern, said) for name, pattern in SAID.items()}
    return {name: int(float(match[1]) * UNITS[match[2]]) for name, match in found.items() if match}


def describe_allocator(said: str) -> str:
    """Where the memory of a GPU is, by the allocator's own figures."""
    figures = read_figures(said)
    if not SAID.keys() <= figures.keys():
        return "GPU memory ran out; where it is, the allocator says above."
    beside = max(0, figures["own"] - figures["allocated"] - figures["holes"])
    words = (
        f"GPU memory ran out: {gib(figures['wanted'])} GiB more were wanted. Of "
        f"{gib(figures['total'])} GiB tensors hold {gib(figures['allocated'])}, holes between them "
        f"{gib(figures['holes'])}, CUDA and NCCL {gib(beside)}, and {gib(figures['free'])} are "
        "free."
    )
    for process, amount, unit in re.findall(OTHERS, said):
        words += (
            f" Process {process} holds {gib(float(amount) * UNITS[unit])} GiB of this GPU: end it, "
            "if it is none of this run."
        )
    return words


def describe_remedies(run: ResolvedRun, figures: dict[str, int]) -> str:
    """The settings that take less, those that help most first."""
    words = ""
    if figures.get("holes", 0) >= figures.get("wanted", GIB):
        words = (
            "The holes alone would have held it: PYTORCH_ALLOC_CONF=expandable_segments:True lets "
            "them be used (it is set by itself, where the variable is not). "
        )
    remedies = find_remedies(run)
    if not remedies:
        return f"{words}No setting takes less, by the plan: take more GPUs."
    kinds = {
        "with the same steps": [one for one in remedies if not one.changes_steps],
        "with other steps": [one for one in remedies if one.changes_steps],
    }
    lists = [
        f"{kind} {', '.join(f'--{one.flags} ({gib(one.num_bytes)} GiB)' for one in named)}"
        for kind, named in kinds.items()
        if named
    ]
    return (
        f"{words}What takes less on a GPU, by the plan for {SKEW:g} times an equal share of tokens "
        f"on the busiest: {'; '.join(lists)}."
    )


def find_remedies(run: ResolvedRun) -> list[Remedy]:
    """Settings that take less memory than the run's, each alone; the greatest gain first."""
    before, found = plan_memory(run, imbalance=SKEW).device_peak, []
    for settings in list_settings(run):
        try:
            changed = resolve(
                with_settings(run.config, **settings),
                shape=run.shape,
                machine=run.machine,
                slots=run.slots,
                known=SETTINGS_ALONE,
            )
        except ConfigError:  # it does not go with the others
            continue
        gain = before - plan_memory(changed, imbalance=SKEW).device_peak
        flags = " --".join(f"{name} {as_flag(value)}" for name, value in settings.items())
        changes_steps = any(FIELDS[name].metadata["changes_steps"] for name in settings)
        found.append(Remedy(flags, gain, changes_steps))
    worthwhile = [one for one in found if one.num_bytes > 0.01 * before]
    return sorted(worthwhile, key=lambda one: -one.num_bytes)


def list_settings(run: ResolvedRun) -> Iterator[dict[str, Any]]:
    """Changes that may save memory: first those after which a step is the same."""
    config, train = run.config, run.config.train
    rows = train.per_device_train_batch_size
    if train.gradient_checkpointing is not True:
        yield {"gradient_checkpointing": True}
    if not train.activation_offload:
        yield {"activation_offload": True}
    if run.shape.num_experts and train.moe_chunks < MANY_CHUNKS:
        yield {"moe_chunks": MANY_CHUNKS}
    if rows > 1:
        accumulated = rows * train.gradient_accumulation_steps
        yield {"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulated}
    yield {
        "sequence_parallel_size": 2 * run.sequence_size,
        "gradient_accumulation_steps": 2 * train.gradient_accumulation_steps,
    }
    yield from (dict(one.settings) for one in method_choices(config) if one.settings)
    yield {"max_seq_length": config.data.max_seq_length // 2}


def describe_host(run: ResolvedRun) -> str:
    """What takes host memory, and what takes less of it."""
    remedies = []
    if run.config.checkpoints.snapshot_gib != 0:
        remedies.append("--snapshot_gib 0 (checkpoints are written without copies)")
    if run.config.train.activation_offload:
        remedies.append("--activation_offload false")
    if run.optimizer.is_on_host:
        remedies.append("--optimizer lean (its states lie on the GPUs)")
    memory = plan_memory(run)
    planned = memory.host_peak if run.is_on_gpu else memory.process_peak
    return (
        f"Host memory ran out: the plan gives each process {gib(planned)} GiB of it. What takes "
        f"less: {', '.join([*remedies, 'fewer processes on this machine'])}."
    )


def gib(num_bytes: float) -> str:
    """Bytes as GiB, which the allocator counts in."""
    return f"{num_bytes / GIB:.2f}"
