"""What a run minimises, as a value that is handed in.

The loop, evaluation, the router monitor and the selftest know of an objective what stands here: its
forward passes, its normaliser and the groups that it reports by: `sft.py`, `preferences.py`.

Shape letters:  G groups
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import deepspeed
import numpy as np
import numpy.typing as npt
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch

SMALLEST_WEIGHT = 1e-12  # where no rank has a label, the sum is 0 and so is the mean


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What the forward passes of one batch gave on this rank, before any division."""

    loss: Tensor  # scalar, float32; its gradient is wanted
    by_group: Tensor  # [groups], float32, without gradient
    pairs: Tensor | None = None  # [2, pairs], rewards of chosen and rejected, without gradient


def prepare_nothing(_: deepspeed.DeepSpeedEngine, batches: Sequence[Batch]) -> list[Batch]:
    """The batches as they are: each has all that its loss needs."""
    return list(batches)


def complete_nothing(means: dict[str, float]) -> dict[str, float]:
    """The means as they are: nothing follows from several of them."""
    return means


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One objective.

    A mean is the sum of `forward` over all ranks and micro-batches by that of `weigh`, so it does
    not depend on how samples are dealt out. What is weighed is the objective's own affair: label
    tokens, pairs, samples.
    """

    groups: tuple[str, ...]  # means by the names they are logged under; the first is the loss
    # The forward passes of a batch. Every rank calls it as often as any other.
    forward: Callable[[deepspeed.DeepSpeedEngine, Batch], Sums]
    # Weight of each group in some batches of this rank: [G]. The first divides the loss.
    weigh: Callable[[Sequence[Batch]], npt.NDArray[np.float64]]
    # What must be known of all batches of a step, or of an evaluation, before the first loss. Every
    # rank calls it, with as many batches as any other.
    prepare: Callable[[deepspeed.DeepSpeedEngine, Sequence[Batch]], list[Batch]] = prepare_nothing
    # Adds what follows from the means and is none itself.
    complete: Callable[[dict[str, float]], dict[str, float]] = complete_nothing
    has_perplexity: bool = True  # whether its losses are cross entropies of tokens
    # No loss up to this is a spike. Losses of pairs go to 0 as pairs are told apart, where one hard
    # pair is many times the median and nothing is wrong.
    least_spike: float = 0.0

    def means(self, sums_G: Sequence[float], weights_G: Sequence[float]) -> dict[str, float]:
        """Mean of each group: of the loss always, of the others where they weigh something."""
        groups = zip(self.groups, sums_G, weights_G, strict=True)
        means = {
            name: total / max(weight, SMALLEST_WEIGHT)
            for name, total, weight in groups
            if weight or name == self.groups[0]
        }
        return self.complete(means)
