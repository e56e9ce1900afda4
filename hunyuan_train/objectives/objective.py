"""What a run minimises, as a value that is handed in.

The loop, evaluation, the router monitor and the selftest know of an objective what stands here: its
forward passes, its normaliser and the groups that it reports by. `sft.py` is the first.

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

    def means(self, sums_G: Sequence[float], weights_G: Sequence[float]) -> dict[str, float]:
        """Mean of each group: of the loss always, of the others where they weigh something."""
        means = zip(self.groups, sums_G, weights_G, strict=True)
        return {
            name: total / max(weight, SMALLEST_WEIGHT)
            for name, total, weight in means
            if weight or name == self.groups[0]
        }
