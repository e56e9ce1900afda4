"""Lets the engine's layers of experts make their split plan once, also where they run twice.

Without this patch a layer that is computed again in the backward pass exchanges the same counts
again, and the CPU waits for them: 64 waits a micro-step at the released size, where 32 do. (The
engine keeps handles of DeepEP so, and not plans of its own exchange; no upstream issue is known.
`tests/rehearsal/test_waits.py` counts waits.)
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from deepspeed.module_inject import auto_ep_layer
from torch import Tensor

from hunyuan_train.model.kept_plans import plan_once

MAKERS = ("_split_plan_from_expert_counts", "_start_async_split_plan_from_expert_counts")


def make_plans_once() -> None:
    """Patch both functions that make plans; safe to call more than once."""
    for name in MAKERS:
        maker = getattr(auto_ep_layer, name)
        if not hasattr(maker, "__wrapped__"):
            setattr(auto_ep_layer, name, once(maker))


def once(make_plan: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of plans that asks first whether the layer that runs has one."""

    @wraps(make_plan)
    def plan(num_tokens_per_expert: Tensor, *arguments: object, **options: object) -> object:
        return plan_once(
            num_tokens_per_expert, lambda: make_plan(num_tokens_per_expert, *arguments, **options)
        )

    return plan
