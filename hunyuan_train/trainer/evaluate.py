"""Loss on held-out dialogues, the same number whatever the count of ranks."""

import deepspeed
import torch

from hunyuan_train.data.loader import Batch
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.trainer.step import forward_losses


@torch.no_grad()
def evaluate(engine: deepspeed.DeepSpeedEngine, batches: list[Batch]) -> float:
    """Mean loss over the label tokens of all ranks' batches; every rank brings as many batches."""
    engine.eval()
    total = weight = 0.0
    for batch in batches:
        total += float(forward_losses(engine, batch).sum())
        weight += float(batch.loss_weights.sum())
    engine.train()
    total, weight = sum_over_ranks([total, weight], engine.device)
    return total / max(weight, 1e-12)
