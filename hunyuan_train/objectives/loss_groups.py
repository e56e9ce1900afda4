"""The loss by kind of dialogue (fast, slow) and by part of an answer (think, answer, markers).

Shape letters:  G groups · T tokens
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import SPAN_ANSWER, SPAN_MARKER, SPAN_THINK

WHOLE = "all"
GROUPS = (WHOLE, "fast", "slow", "think", "answer", "markers")


def group_masks(batch: Batch) -> npt.NDArray[np.float32]:
    """Which tokens belong to each group, 1 or 0: [G, T]; those without a label do not matter."""
    of_row = np.repeat(batch.modes, np.diff(batch.cu_seqlens))
    modes = of_row[batch.first_token : batch.first_token + len(batch.input_ids)]
    masks = [
        np.ones_like(modes),
        modes == MODES.index("fast"),
        modes == MODES.index("slow"),
        batch.spans == SPAN_THINK,
        batch.spans == SPAN_ANSWER,
        batch.spans == SPAN_MARKER,
    ]
    return np.stack(masks).astype(np.float32)


def group_weights(batches: Sequence[Batch]) -> npt.NDArray[np.float64]:
    """Loss weight of all labels of each group: [G]."""
    total_G = np.zeros(len(GROUPS))
    for batch in batches:
        total_G += group_masks(batch) @ batch.loss_weights.astype(np.float64)
    return total_G


def group_means(sums_G: Sequence[float], weights_G: Sequence[float]) -> dict[str, float]:
    """Mean loss of each group, "all" always and the others where they have labels."""
    means = zip(GROUPS, sums_G, weights_G, strict=True)
    return {
        name: total / max(weight, 1e-12) for name, total, weight in means if weight or name == WHOLE
    }
