"""A line of the plan: so many bytes, where they lie, when, and why so many."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """When a component exists."""

    ALWAYS = "always"
    BACKWARD = "forward and backward"
    LOSS = "around the loss"
    LAYER = "while a layer runs"
    END = "at the end of backward"
    STEP = "optimizer step"
    START = "at the start"


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
    moments = (
        total_of(lines, Phase.BACKWARD, Phase.LOSS),
        total_of(lines, Phase.BACKWARD, Phase.LAYER),
        total_of(lines, Phase.END),
        total_of(lines, Phase.STEP),
        total_of(lines, Phase.START),
    )
    return total_of(lines, Phase.ALWAYS) + max(moments)


def gigabytes(num_bytes: float) -> str:
    """Bytes as GB of 10^9, or as MB where there are few."""
    amount = num_bytes / 1e9
    return f"{amount:,.1f} GB" if amount >= 1 else f"{amount * 1000:,.1f} MB"
