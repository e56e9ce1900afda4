"""Ranks whose tokens are few, many, all alike or none train and evaluate as one process does.

A rank that waited for another would hang: `run_ranks` gives up after its timeout.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.trainer.step import train_step
from tests.batches import empty_batch, make_batch, plain_loss, plain_model, released_state
from tests.engines import WEIGHT_DECAY, kept_weights, router_terms, small_engine
from tests.ranks import run_together

RATE = 0.05


def one_long(num_ranks: int) -> list[list[Batch]]:
    """The first rank has hundreds of tokens, the last one nothing at all, the others one or two."""
    generator = np.random.default_rng(1)
    ranks = [[make_batch(generator, [2]), make_batch(generator, [3])] for _ in range(num_ranks)]
    ranks[0] = [make_batch(generator, [170, 3, 90]), make_batch(generator, [40])]
    ranks[-1] = [empty_batch(), empty_batch()]
    return ranks


def last_batch_empty(num_ranks: int) -> list[list[Batch]]:
    """Every rank but the first runs out of samples one micro-batch early."""
    generator = np.random.default_rng(2)
    ranks = [[make_batch(generator, [20, 7]), empty_batch()] for _ in range(num_ranks)]
    ranks[0][1] = make_batch(generator, [11])
    return ranks


def all_alike(num_ranks: int) -> list[list[Batch]]:
    """The same two tokens everywhere: they go to the same experts, and the others get nothing."""
    batch = make_batch(np.random.default_rng(3), [2] * 6)
    batch.input_ids[:] = np.tile([5, 9], 6)
    batch.labels[:] = np.tile([9, -100], 6)
    batch.loss_weights[:] = batch.labels >= 0
    return [[batch, batch] for _ in range(num_ranks)]


STEPS = (one_long, all_alike, last_batch_empty, all_alike)


@dataclass
class Outcome:
    """What a rank has seen."""

    eval_loss: float
    losses: list[float]
    load: Tensor  # [layers, experts], of the step whose tokens are all alike
    weights: dict[tuple[str, int], Tensor]


def train_unevenly(rank_of: int, expert_size: int, is_bf16: bool) -> Outcome:
    engine = small_engine(
        stage=3, expert_size=expert_size, optimizer="sgd", max_grad_norm=0.0, is_bf16=is_bf16
    )
    terms = router_terms(engine, 0.0, 0.0)
    rank = torch.distributed.get_rank()
    batches = one_long(rank_of)[rank] + last_batch_empty(rank_of)[rank]
    eval_loss = evaluate(engine, SFT, batches)["loss"]
    losses, load_LE = [], torch.zeros(())
    for make in STEPS:
        result = train_step(engine, SFT, make(rank_of)[rank], learning_rate=RATE, routers=terms)
        losses.append(result.loss)
        if make is all_alike:
            load_LE = terms.watch.take_load()
        terms.watch.take_load()
    return Outcome(eval_loss, losses, load_LE, kept_weights(engine.module))


def train_plain(num_ranks: int) -> tuple[float, list[float], dict[str, Tensor]]:
    model = plain_model()
    optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=RATE)
    everything = chain(*one_long(num_ranks), *last_batch_empty(num_ranks))
    with torch.no_grad():
        eval_loss = plain_loss(model, list(everything)).item()
    losses = []
    for make in STEPS:
        loss = plain_loss(model, list(chain(*make(num_ranks))))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return eval_loss, losses, released_state(model)


CASES = {  # by number of ranks: that and how many share experts, and whether in bfloat16
    2: ((2, 2, False), (2, 2, True)),
    4: ((4, 2, False), (4, 4, False)),
}


def train_together(num_ranks: int, expert_size: int, is_bf16: bool) -> list[Outcome]:
    case = (num_ranks, expert_size, is_bf16)
    return run_together(train_unevenly, num_ranks, CASES[num_ranks])[case]


@pytest.mark.parametrize(
    ("world_size", "expert_size"),
    [(2, 2), *(pytest.param(4, size, marks=pytest.mark.slow) for size in (2, 4))],
)
def test_uneven_ranks_train_and_evaluate_as_one_process(world_size: int, expert_size: int) -> None:
    expected_eval, expected_losses, expected = train_plain(world_size)
    ranks = train_together(world_size, expert_size, False)
    for rank in ranks:
        assert rank.eval_loss == pytest.approx(expected_eval, abs=2e-6)
        assert rank.losses == pytest.approx(expected_losses, abs=2e-6)
        for (name, start), values in rank.weights.items():
            theirs = expected[name][start : start + len(values)]
            assert (values - theirs).abs().max() < 1e-6, name
    load_LE = sum(rank.load for rank in ranks)
    assert (load_LE == 0).any(dim=1).all(), "every layer must have an expert without tokens"
    by_rank = load_LE.unflatten(1, (expert_size, -1)).sum(dim=-1)
    assert expert_size < 4 or (by_rank == 0).any(), "a rank's experts must all have been idle"


def test_uneven_ranks_train_in_bfloat16() -> None:
    _, expected_losses, _ = train_plain(2)
    for rank in train_together(2, 2, True):
        assert rank.losses == pytest.approx(expected_losses, rel=2e-2)  # three digits, four steps
