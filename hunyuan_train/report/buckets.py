"""Long curves made short: mean, lowest and highest of each bucket of neighbouring lines.

So a spike of one step is seen however many lines a pixel stands for, and the mean is no sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SIGNIFICANT_DIGITS = 7


@dataclass(frozen=True, slots=True)
class Buckets:
    """A curve, with NaN where nothing can be drawn.

    Where `lines_each` is 1, low and high are the mean.
    """

    steps: Array  # [buckets], of the last line of each
    mean: Array
    low: Array
    high: Array
    lines_each: int

    def to_json(self) -> dict[str, object]:
        """Numbers with as many digits as a chart shows; lows and highs only where they differ."""
        content: dict[str, object] = {"steps": as_list(self.steps), "mean": as_list(self.mean)}
        if self.lines_each > 1:
            content |= {"low": as_list(self.low), "high": as_list(self.high)}
        return content | {"lines_each": self.lines_each}


def as_list(values: Array) -> list[float | int | None]:
    """Numbers for JSON, short, with null for what is none."""
    return [None if one != one else _short(one) for one in values.tolist()]


def _short(value: float) -> float | int:
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def make_buckets(
    steps: NDArray[np.int64] | Array,
    values: Array,
    *,
    first: float = -np.inf,
    last: float = np.inf,
    most: int,
) -> Buckets:
    """A curve of at most `most` buckets between two steps, and a point beyond on each side.

    Args:
        steps: [lines], rising.
        values: [lines]; infinite where there is a gap.
        first: step from which on.
        last: step up to which.
        most: buckets.
    """
    begin = max(0, int(np.searchsorted(steps, first, "left")) - 1)
    end = int(np.searchsorted(steps, last, "right")) + 1
    steps, values = steps[begin:end].astype(np.float64), values[begin:end]
    values = np.where(np.isfinite(values), values, np.nan)
    size = max(1, -(-len(values) // most))
    if size == 1:
        return Buckets(steps, values, values, values, 1)
    starts = np.arange(0, len(values), size)
    counts = np.add.reduceat((~np.isnan(values)).astype(np.float64), starts)
    sums = np.add.reduceat(np.nan_to_num(values, nan=0.0), starts)
    mean = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    ends = np.minimum(starts + size, len(values)) - 1
    return Buckets(steps[ends], mean, low, high, size)
