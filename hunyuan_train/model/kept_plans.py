"""What the CPU learned in a layer's first run, kept for when the layer is computed again.

A layer with split experts must know how many rows ranks send each other: an exchange of counts, and
a wait until the GPU has come that far. The second run routes the same tokens to the same experts.
It takes the first one's plan, and neither exchanges nor waits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Which part of a layer runs, and where its plan is kept."""

    plans: dict[int, tuple[Tensor, Any]]  # by part: counts that a plan was made of, and the plan
    part: int


# Of this thread: backward passes, and with them second runs, have a thread of their own on GPUs.
running: ContextVar[Place | None] = ContextVar("running", default=None)


@contextmanager
def at_place(place: Place) -> Iterator[None]:
    """Keep plans that are made inside at a place, or find them there."""
    token = running.set(place)
    try:
        yield
    finally:
        running.reset(token)


def keep_plans(
    checkpoint_layer: Callable[..., Tensor], layer: Callable[..., Tensor], *inputs: object
) -> Tensor:
    """Checkpoint a layer, both of whose runs have the same plans."""
    return checkpoint_layer(as_part(layer, {}, 0), *inputs)


def as_part(
    function: Callable[..., Tensor], plans: dict[int, tuple[Tensor, Any]], part: int
) -> Callable[..., Tensor]:
    """A function that keeps the plan of a part of a layer, whenever it runs."""

    def run(*inputs: object) -> Tensor:
        with at_place(Place(plans, part)):
            return function(*inputs)

    return run


def plan_once(counts: Tensor, make_plan: Callable[[], Any]) -> Any:  # noqa: ANN401 the engine's
    """The plan of the layer that runs: made in its first run, and taken again in others.

    Args:
        counts: rows of this rank for each expert, of which the plan is made: [experts].
        make_plan: exchanges counts with other ranks.

    Raises:
        RuntimeError: the second run chose other experts; on GPUs as an assertion of the device.
    """
    place = running.get()
    if place is None:
        return make_plan()
    if place.part not in place.plans:
        place.plans[place.part] = counts, make_plan()
    first_counts, plan = place.plans[place.part]
    if first_counts is not counts:
        is_same = (first_counts == counts).all()
        torch._assert_async(is_same, "a layer that was computed again chose other experts")
    return plan
