"""A line of the plan: so many bytes, where they lie, when, and why so many."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """When a component exists."""

    ALWAYS = "always"
    PASSES = "forward and backward"
    BACKWARD = "loss and backward"
    SAVED = "until the last layer's backward"
    AHEAD = "around the loss and in the last layer's backward"
    FORWARD = "in the last layer's forward"
    LOSS = "around the loss"
    AGAIN = "in a layer's second run"
    LAYER = "in a layer's backward"
    FIRST = "from the first layer's second run to its backward"
    FIRST_AGAIN = "in the first layer's second run"
    FIRST_BACKWARD = "in the first layer's backward"
    END = "at the end of backward"
    STEP = "optimizer step"
    START = "at the start"


# When a step may be fullest, and what exists then beside what always does.
MOMENTS = {
    "forward": (Phase.PASSES, Phase.SAVED, Phase.FORWARD),
    "loss": (Phase.PASSES, Phase.BACKWARD, Phase.SAVED, Phase.AHEAD, Phase.LOSS),
    "last layer": (Phase.PASSES, Phase.BACKWARD, Phase.SAVED, Phase.AHEAD, Phase.LAYER),
    "last layer again": (Phase.PASSES, Phase.BACKWARD, Phase.SAVED, Phase.AHEAD, Phase.AGAIN),
    "first layer": (
        *(Phase.PASSES, Phase.BACKWARD, Phase.FIRST, Phase.FIRST_BACKWARD, Phase.LAYER),
    ),
    "first layer again": (
        *(Phase.PASSES, Phase.BACKWARD, Phase.FIRST, Phase.FIRST_AGAIN, Phase.AGAIN),
    ),
    "end": (Phase.END,),
    "optimizer": (Phase.STEP,),
    "start": (Phase.START,),
}


@dataclass(frozen=True, slots=True)
class Component:
    """Bytes of one rank, on its device or in host memory."""

    name: str
    num_bytes: int
    phase: Phase
    source: str  # what is held, and the code or measurement that says so


def total_of(components: Iterable[Component], *phases: Phase) -> int:
    """Bytes of the components that exist in one of some phases."""
    return sum(component.num_bytes for component in components if component.phase in phases)


def peak_bytes(components: Iterable[Component]) -> int:
    """Most bytes at one time: those that always exist, and of the moments of a step the fullest."""
    lines = tuple(components)
    moments = (total_of(lines, *phases) for phases in MOMENTS.values())
    return total_of(lines, Phase.ALWAYS) + max(moments)


def gigabytes(num_bytes: float) -> str:
    """Bytes as GB of 10^9, or as MB where there are few."""
    amount = num_bytes / 1e9
    return f"{amount:,.1f} GB" if amount >= 1 else f"{amount * 1000:,.1f} MB"


def gibibytes(num_bytes: float, *, digits: int = 1) -> str:
    """Bytes as GiB of 2^30, or as MiB where there are few."""
    amount = num_bytes / 2**30
    name = "GiB"
    if amount < 1:
        amount, name = amount * 1024, "MiB"
    return f"{amount:,.{digits}f} {name}"
