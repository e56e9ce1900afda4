"""Loss on held-out dialogues, the same numbers whatever the count of ranks."""

from math import exp

import deepspeed
import torch

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.json_lines import Numbers
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.progress import tell_progress

MAX_EXPONENT = 700.0  # beyond, a float64 overflows


@torch.no_grad()
def evaluate(
    engine: deepspeed.DeepSpeedEngine, objective: Objective, batches: list[Batch]
) -> dict[str, float]:
    """Means of the objective over all ranks' batches, by the names that a step reports them by.

    Every rank brings as many batches.
    """
    engine.eval()
    batches = objective.prepare(engine, batches)
    sums = torch.zeros(len(objective.groups), dtype=torch.float64, device=engine.device)
    for batch in batches:
        sums += objective.forward(engine, batch).by_group
        tell_progress()
    engine.train()
    weights = objective.weigh(batches).tolist()
    totals = sum_over_ranks([*sums.tolist(), *weights], engine.device)
    return objective.means(totals[: len(weights)], totals[len(weights) :])


def name_losses(losses: dict[str, float], *, has_perplexity: bool = True) -> Numbers:
    """Losses and perplexities (their exponentials) under the names they are logged by."""
    numbers: Numbers = {f"eval_{name}": loss for name, loss in losses.items()}
    for name, loss in losses.items() if has_perplexity else ():
        perplexity = name.replace("loss", "perplexity", 1)
        numbers[f"eval_{perplexity}"] = exp(min(loss, MAX_EXPONENT))
    return numbers
