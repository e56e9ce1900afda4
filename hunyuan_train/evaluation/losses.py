"""Loss on held-out dialogues, the same numbers whatever the count of ranks."""

from math import exp

import deepspeed
import torch

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.json_lines import Numbers
from hunyuan_train.objectives.loss_groups import (
    GROUPS,
    WHOLE,
    group_masks,
    group_means,
    group_weights,
)
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.progress import tell_progress
from hunyuan_train.trainer.step import forward_losses

MAX_EXPONENT = 700.0  # beyond, a float64 overflows


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
        tell_progress()
    engine.train()
    totals = sum_over_ranks([*sums.tolist(), *group_weights(batches).tolist()], engine.device)
    return group_means(totals[: len(GROUPS)], totals[len(GROUPS) :])


def name_losses(losses: dict[str, float]) -> Numbers:
    """Losses and perplexities (their exponentials) under the names they are logged by."""
    suffixes = {group: "" if group == WHOLE else f"_{group}" for group in losses}
    numbers: Numbers = {f"eval_loss{suffixes[group]}": loss for group, loss in losses.items()}
    for group, loss in losses.items():
        numbers[f"eval_perplexity{suffixes[group]}"] = exp(min(loss, MAX_EXPONENT))
    return numbers
