"""A line of the plan: so many bytes, where they lie, when, and why so many."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """When a component exists."""

    ALWAYS = "always"
    PASSES = "forward and backward"
    BACKWARD = "loss and backward"
    SAVED = "until the last layer's backward"
    FORWARD = "in the last layer's forward"
    LOSS = "around the loss"
    AGAIN = "in a layer's second run"
    ENTERED = "at a layer's first gradients"
    LAYER = "in a layer's backward"
    NORM = "at a layer's last gradients"
    LATER_AGAIN = "in a later layer's second run"
    LATER_ENTERED = "at a later layer's first gradients"
    LATER_BACKWARD = "in a later layer's backward"
    LATER_NORM = "at a later layer's last gradients"
    FIRST = "from the first layer's second run to its backward"
    FIRST_AGAIN = "in the first layer's second run"
    FIRST_ENTERED = "at the first layer's first gradients"
    FIRST_BACKWARD = "in the first layer's backward"
    FIRST_NORM = "at the first layer's last gradients"
    END = "at the end of backward"
    STEP = "optimizer step"
    START = "at the start"


LATER = (Phase.PASSES, Phase.BACKWARD, Phase.SAVED)  # in each layer but the first
FIRST = (Phase.PASSES, Phase.BACKWARD, Phase.FIRST)
# When a step may be fullest, and what exists then beside what always does.
MOMENTS = {
    "the forward pass": (Phase.PASSES, Phase.SAVED, Phase.FORWARD),
    "the loss": (Phase.PASSES, Phase.BACKWARD, Phase.SAVED, Phase.LOSS),
    "a layer's second run": (*LATER, Phase.LATER_AGAIN, Phase.AGAIN),
    "a layer's first gradients": (*LATER, Phase.LATER_ENTERED, Phase.ENTERED),
    "a layer's backward": (*LATER, Phase.LATER_BACKWARD, Phase.LAYER),
    "a layer's last gradients": (*LATER, Phase.LATER_NORM, Phase.NORM),
    "the first layer's second run": (*FIRST, Phase.FIRST_AGAIN, Phase.AGAIN),
    "the first layer's first gradients": (*FIRST, Phase.FIRST_ENTERED, Phase.ENTERED),
    "the first layer's backward": (*FIRST, Phase.FIRST_BACKWARD, Phase.LAYER),
    "the first layer's last gradients": (*FIRST, Phase.FIRST_NORM, Phase.NORM),
    "the end of backward": (Phase.END,),
    "the update": (Phase.STEP,),
    "the start": (Phase.START,),
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
    return total_of(lines, Phase.ALWAYS) + total_of(lines, *MOMENTS[fullest_moment(lines)])


def fullest_moment(lines: Sequence[Component], names: Iterable[str] = MOMENTS) -> str:
    """The name of the moment, of some, in which most exists."""
    return max(names, key=lambda name: total_of(lines, *MOMENTS[name]))


def lines_at(lines: Sequence[Component], moment: str) -> tuple[Component, ...]:
    """The lines that hold at a moment."""
    phases = (Phase.ALWAYS, *MOMENTS[moment])
    return tuple(line for line in lines if line.phase in phases)


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
