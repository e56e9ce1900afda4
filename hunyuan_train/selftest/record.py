"""What a training leaves to compare: numbers of each step, gradients and weights by released name.

A rank keeps parts of tensors, the reference whole ones; both are keyed by name and first element.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Parts = Mapping[tuple[str, int], Floats]  # released tensor and first element: flat values


@dataclass(slots=True, eq=False)
class Record:
    """A training of several steps."""

    start: Parts = field(default_factory=dict)  # weights before the first step
    numbers: list[dict[str, float]] = field(default_factory=list)  # losses of each step, by name
    grad_norms: list[float] = field(default_factory=list)  # before clipping
    gradients: list[Parts] = field(default_factory=list)  # before clipping
    end: Parts = field(default_factory=dict)  # weights after the last step
