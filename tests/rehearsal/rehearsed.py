"""Rehearsals for tests: the released model's widths, few layers, on pretended GPUs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.planner.memory import Memory, plan_memory
from hunyuan_train.rehearsal.commands import ask_process
from hunyuan_train.rehearsal.guard import prepare_guard
from hunyuan_train.rehearsal.question import Question

EIGHT_GPUS = Machine(num_gpus=8, num_cores=8, gpu_memory=80 * 10**9)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A rehearsal and the plan of the same run."""

    run: ResolvedRun
    seen: dict[str, Any]
    plan: Memory

    @property
    def ratio(self) -> float:
        """Planned bytes over rehearsed ones, as the allocator counts them."""
        return self.plan.allocated_peak / self.seen["allocated_peak"]


def rehearsed(
    *flags: str,
    model: str = "a13b",
    layers: int = 2,
    nodes: int = 1,
    gpus: int = 8,
    skew: float = 1.25,
    parts: Sequence[str] = (),
    hook: str = "",
) -> Rehearsed:
    """Rehearse the released model, or another preset, with some settings."""
    config = load_config(["--model_name_or_path", model, *flags])
    run = resolve(
        config,
        shape=replace(PRESETS[model], num_hidden_layers=layers),
        machine=replace(EIGHT_GPUS, num_gpus=gpus),
        slots=[gpus] * nodes,
        known=SETTINGS_ALONE,
    )
    guard = prepare_guard(extensions_folder(os.environ))
    question = Question(
        run=run,
        skew=skew,
        gpu_memory=EIGHT_GPUS.gpu_memory,
        parts=frozenset(parts),
        guard=str(guard),
        hook=hook,
    )
    return Rehearsed(run, ask_process(question), plan_memory(run, imbalance=skew))
