"""Loss on held-out dialogues, the same numbers whatever the count of ranks."""

import deepspeed
import torch

from hunyuan_train.data.loader import Batch
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.trainer.loss_groups import GROUPS, group_masks, group_means, group_weights
from hunyuan_train.trainer.step import forward_losses


@torch.no_grad()
def evaluate(engine: deepspeed.DeepSpeedEngine, batches: list[Batch]) -> dict[str, float]:
    """Mean loss over the label tokens of all ranks' batches, of all and by mode and span.

    Every rank brings as many batches.
    """
    engine.eval()
    sums = torch.zeros(len(GROUPS), dtype=torch.float64, device=engine.device)
    for batch in batches:
        masks = torch.from_numpy(group_masks(batch)).to(engine.device)
        sums += masks @ forward_losses(engine, batch)
    engine.train()
    totals = sum_over_ranks([*sums.tolist(), *group_weights(batches).tolist()], engine.device)
    return group_means(totals[: len(GROUPS)], totals[len(GROUPS) :])
