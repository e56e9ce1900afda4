"""What a step of preferences costs beside a step of fine-tuning on the same tokens.

    python -m benchmarks.preferences [--pairs 16] [--length 128] [--rounds 5] [--report]

All kinds of step take turns in one process, on one row. Time is processor time of one thread, the
best of the rounds. Memory is the most that torch holds at once during a step, beside what it held
before: the profiler reports every allocation, so this is exact.
"""

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.objectives.preferences import make_preference_objective
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.selftest.local_ranks import run_ranks
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, batch_of
from tests.engines import small_engine

SHAPE_MEASURED = replace(SHAPE, hidden_size=256, intermediate_size=256, vocab_size=2048)
TIMEOUT_SECONDS = 1200.0
SFT_STEP, KEPT, OFF = "SFT", "DPO, reference in the cache", "DPO, adapters off for the reference"
METHODS = {
    "LoRA": LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules="all"),
    "full": LoraConfig(),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of step."""

    seconds: float  # of the processor, the best round
    peak: int  # bytes, beside what was held before the step


def measure(method: str, num_pairs: int, length: int, num_rounds: int) -> dict[str, Cost]:
    """Cost of each kind of step, by its name; runs in a process of its own.

    Args:
        method: one of METHODS.
        num_pairs: in the row.
        length: tokens of each answer with its prompt, a quarter of which is prompt.
        num_rounds: that are timed, after one that is not.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lora = METHODS[method]
    engine = small_engine(stage=3, expert_size=1, optimizer="sgd", lora=lora, shape=SHAPE_MEASURED)
    kinds = make_kinds(num_pairs, length, has_adapters=lora.use_lora)
    steps = {
        name: lambda objective=objective, row=row: train_step(
            engine, objective, [row], learning_rate=1e-4
        )
        for name, (objective, row) in kinds.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + num_rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    return {name: Cost(min(seconds[name][1:]), find_peak(steps[name])) for name in steps}


def make_kinds(
    num_pairs: int, length: int, *, has_adapters: bool
) -> dict[str, tuple[Objective, Batch]]:
    """Objectives, and the same row for each."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, SHAPE_MEASURED.vocab_size, length) for _ in range(2 * num_pairs)]
    row = batch_of(texts, [length // 4] * len(texts))
    sides = np.array([CHOSEN, REJECTED] * num_pairs, np.uint8)
    pairs = replace(row, sides=sides, reference_logps=np.zeros(len(texts)))
    dpo = PreferenceConfig(objective="dpo")
    kinds = {
        SFT_STEP: (SFT, row),
        KEPT: (make_preference_objective(dpo, group=None, reference_is_base=False), pairs),
    }
    if has_adapters:
        off = make_preference_objective(dpo, group=None, reference_is_base=True)
        kinds[OFF] = (off, pairs)
    return kinds


def find_peak(step: Callable[[], object]) -> int:
    """Most bytes that torch holds at once during a step, beside what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()
    changes = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"]
    held = np.cumsum([num_bytes for _, num_bytes in sorted(changes)])
    return int(held.max())


def describe(costs: dict[str, dict[str, Cost]], command: str) -> str:
    """The table, in Markdown."""
    lines = [
        f"## Preferences: {date.today()}\n",
        f"`{command}` on {platform.machine()}, one thread, torch {version('torch')}, deepspeed "
        f"{version('deepspeed')}.\n",
        "| step | time | SFT / it | peak memory | it / SFT |",
        "|---|---:|---:|---:|---:|",
    ]
    for method, kinds in costs.items():
        plain = kinds[SFT_STEP]
        lines += [
            f"| {method}: {name} | {cost.seconds:.3f} s | {plain.seconds / cost.seconds:.2f} "
            f"| {cost.peak / 1e6:.1f} MB | {cost.peak / plain.peak:.3f} |"
            for name, cost in kinds.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    add_report_flag(parser)
    arguments = parser.parse_args()
    sizes = (arguments.pairs, arguments.length, arguments.rounds)
    costs = {}
    for method in METHODS:
        [costs[method]] = run_ranks(
            measure, 1, method, *sizes, preload=["tests.preload"], timeout_seconds=TIMEOUT_SECONDS
        )
    command = f"python -m benchmarks.preferences --pairs {arguments.pairs} --length "
    show(describe(costs, f"{command}{arguments.length}"), is_kept=arguments.report)


if __name__ == "__main__":
    main()
