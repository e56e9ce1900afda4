"""Loss on held-out dialogues, the same numbers whatever the count of ranks."""

from collections.abc import Callable, Sequence
from math import exp

import deepspeed
import numpy as np
import torch

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.json_lines import Numbers
from hunyuan_train.objectives.objective import Objective, Sums
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.progress import tell_progress

MAX_EXPONENT = 700.0  # beyond, a float64 overflows


@torch.no_grad()
def evaluate(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    batches: list[Batch],
    see: Callable[[Batch, Sums], None] = lambda batch, sums: None,
) -> dict[str, float]:
    """Means of the objective over all ranks' batches, by the names that a step reports them by.

    Where batches are of several files, the loss of each is there, too, as `loss/FILE`. Every rank
    brings as many batches, of the same files in the same order.

    Args:
        engine: with the model.
        objective: whose means they are.
        batches: of this rank.
        see: is shown each batch with what its forward passes gave.
    """
    engine.eval()
    batches = objective.prepare(engine, batches)
    sources = list_sources(batches)
    sums = torch.zeros(
        (len(sources), len(objective.groups)), dtype=torch.float64, device=engine.device
    )
    for batch in batches:
        found = objective.forward(engine, batch)
        sums[sources.index(batch.source)] += found.by_group
        see(batch, found)
        tell_progress()
    engine.train()
    weights = np.concatenate(
        [
            objective.weigh([batch for batch in batches if batch.source == source])
            for source in sources
        ]
    )
    totals = np.array(
        sum_over_ranks([*sums.flatten().tolist(), *weights.tolist()], engine.device)
    ).reshape(2, len(sources), len(objective.groups))
    means = objective.means(*totals.sum(axis=1).tolist())
    if len(sources) > 1:
        for source, of_source in zip(sources, totals.swapaxes(0, 1), strict=True):
            means[f"loss/{source}"] = objective.means(*of_source.tolist())[objective.groups[0]]
    return means


def list_sources(batches: Sequence[Batch]) -> list[str]:
    """The files that held-out batches are of; one without a name where they are not told apart."""
    return list(dict.fromkeys(batch.source for batch in batches)) or [""]


def name_losses(losses: dict[str, float], *, has_perplexity: bool = True) -> Numbers:
    """Losses and perplexities (their exponentials) under the names they are logged by."""
    numbers: Numbers = {f"eval_{name}": loss for name, loss in losses.items()}
    for name, loss in losses.items() if has_perplexity else ():
        perplexity = name.replace("loss", "perplexity", 1)
        numbers[f"eval_{perplexity}"] = exp(min(loss, MAX_EXPONENT))
    return numbers
