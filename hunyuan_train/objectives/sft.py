"""Supervised fine-tuning: the mean cross entropy of all label tokens, by their weights.

Shape letters:  G groups · T tokens
"""

from collections.abc import Sequence

import deepspeed
import numpy as np
import numpy.typing as npt

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.loss import send_row, token_losses
from hunyuan_train.objectives.loss_groups import BY_MODE, BY_SPAN
from hunyuan_train.objectives.objective import Objective, Sums


def sum_label_losses(engine: deepspeed.DeepSpeedEngine, batch: Batch) -> Sums:
    """Weighted losses of a batch's labels, all together and by group."""
    row = send_row(batch, engine.device, batch.loss_weights, group_masks(batch))
    weights_T, masks_GT = row.beside
    losses_T = token_losses(engine, batch, row) * weights_T
    return Sums(losses_T.sum(), masks_GT @ losses_T.detach())


def sum_label_weights(batches: Sequence[Batch]) -> npt.NDArray[np.float64]:
    """Loss weight of all labels of each group: [G]."""
    total_G = np.zeros(len(SFT.groups))
    for batch in batches:
        total_G += group_masks(batch) @ batch.loss_weights.astype(np.float64)
    return total_G


def group_masks(batch: Batch) -> npt.NDArray[np.float32]:
    """Which tokens belong to each group, 1 or 0: [G, T]; those without a label do not matter."""
    of_row = np.repeat(batch.modes, np.diff(batch.cu_seqlens))
    modes = of_row[batch.first_token : batch.first_token + len(batch.input_ids)]
    masks = [
        np.ones_like(modes),
        *(modes == number for number in BY_MODE.values()),
        *(batch.spans == number for number in BY_SPAN.values()),
    ]
    return np.stack(masks).astype(np.float32)


SFT = Objective(
    groups=("loss", *(f"loss_{group}" for group in (*BY_MODE, *BY_SPAN))),
    forward=sum_label_losses,
    weigh=sum_label_weights,
)
