"""Ranks that share rows train as one process does that has them whole.

Against Transformers' own model in one process, each document alone, in float32. SGD shows a wrong
scale of gradients, which Adam hides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.model.attention import FLASH_2, FLASH_3, PER_DOCUMENT, VARIABLE_LENGTH
from hunyuan_train.model.loss import token_losses
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.parallel.sequence import repeat_heads
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, make_batch, plain_loss, plain_model, released_state
from tests.engines import (
    LEARNING_RATES,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    end_engines,
    kept_weights,
    my_share,
    router_terms,
    small_engine,
)
from tests.kernels import stand_in_for_kernels
from tests.ranks import run_ranks, run_together

LOSS_TOLERANCE = 2e-7  # relative
WEIGHT_TOLERANCE = 2e-5
NUM_STEPS = 3
# With 1e-8, Adam makes steps of a third of its rate of what is rounding in gradients of 1e-8.
ADAM_EPSILON = 1e-6


def one_document(step: int, num_batches: int) -> list[Batch]:
    """Rows of a single document, no two of them of a length."""
    generator = np.random.default_rng(step)
    lengths = generator.permutation(np.arange(20, 90))[:num_batches]
    return [make_batch(generator, [int(length)]) for length in lengths]


def awkward(step: int, num_batches: int) -> list[Batch]:
    """Parts without a label, bounds of documents at those of parts, and as many tokens as ranks."""
    generator = np.random.default_rng(step)
    masked = make_batch(generator, [16, 16, 16, 16])  # of four parts or two
    has_label = np.arange(64) < 16 * (1 + step % 3)
    masked.labels[~has_label] = -100
    masked.loss_weights[~has_label] = 0.0
    shortest = make_batch(generator, [1, 2, 1])
    late = make_batch(generator, [50, 3])
    late.labels[:40] = -100
    late.loss_weights[:40] = 0.0
    return [masked, shortest, late, make_batch(generator, [5])][:num_batches]


ROWS: dict[str, Callable[[int, int], list[Batch]]] = {
    "packed": global_batch,
    "one document": one_document,
    "awkward": awkward,
}


@dataclass(frozen=True)
class Way:
    """One way to train."""

    num_ranks: int
    sequence_size: int
    expert_size: int
    rows: str = "packed"
    is_recomputed: bool = True
    accumulation: int = 1
    optimizer: str = "sgd"
    moe_chunks: int = 1
    attention: str = PER_DOCUMENT

    @property
    def num_batches(self) -> int:
        return self.num_ranks // self.sequence_size * self.accumulation

    def __str__(self) -> str:
        parts = [
            f"{self.num_ranks} ranks, rows over {self.sequence_size}, experts {self.expert_size}",
            self.rows,
            self.optimizer,
            f"accumulation {self.accumulation}",
            "recomputed" if self.is_recomputed else "kept",
            f"{self.moe_chunks} chunks",
            self.attention,
        ]
        return ", ".join(parts)


@dataclass
class Trained:
    """What came of it, on a rank."""

    losses: list[float]
    eval_loss: float  # of the first step's rows, after training
    weights: dict[tuple[str, int], Tensor]
    router_losses: list[float]


def train_shared(way: Way, with_routers: bool = False) -> Trained:
    engine = small_engine(
        stage=3,
        expert_size=way.expert_size,
        optimizer=way.optimizer,
        sequence_size=way.sequence_size,
        moe_chunks=way.moe_chunks,
        is_recomputed=way.is_recomputed,
        adam_epsilon=ADAM_EPSILON,
        attention=way.attention,
    )
    routers = router_terms(engine, 0.3, 0.01) if with_routers else None
    rows = partial(ROWS[way.rows], num_batches=way.num_batches)
    results = [
        train_step(
            engine,
            SFT,
            my_share(rows(step), way.sequence_size),
            learning_rate=LEARNING_RATES[way.optimizer],
            routers=routers,
        )
        for step in range(NUM_STEPS)
    ]
    trained = Trained(
        losses=[result.loss for result in results],
        eval_loss=evaluate(engine, SFT, my_share(rows(0), way.sequence_size))["loss"],
        weights=kept_weights(engine.module),
        router_losses=[result.router_loss for result in results],
    )
    return trained


@cache
def train_plain(optimizer: str, rows: str, num_batches: int) -> Trained:
    """The same steps in one process; weights whole, by released name."""
    model = plain_model()
    adamw = partial(torch.optim.AdamW, betas=(0.9, 0.95), eps=ADAM_EPSILON)
    kind = {"sgd": torch.optim.SGD, "adamw": adamw}
    stepper = kind[optimizer](decay_groups(model, WEIGHT_DECAY), lr=LEARNING_RATES[optimizer])
    steps = [ROWS[rows](step, num_batches) for step in range(NUM_STEPS)]
    losses = []
    for batches in steps:
        loss = plain_loss(model, batches)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        eval_loss = plain_loss(model, steps[0]).item()
    weights = {(name, 0): values for name, values in released_state(model).items()}
    return Trained(losses, eval_loss, weights, [])


def train_each(ways: list[Way]) -> list[Trained]:
    """One after the other, which spares starting processes."""
    trained = []
    for way in ways:
        trained.append(train_shared(way))
        end_engines()
    return trained


def train_with_stand_ins(ways: list[Way]) -> list[Trained]:
    """The same where the kernels of GPUs are stood in for."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_kernels(patch)
        return train_each(ways)


def check_equal(way: Way, ranks: list[Trained]) -> None:
    expected = train_plain(way.optimizer, way.rows, way.num_batches)
    num_seen = dict.fromkeys(expected.weights, 0)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE)
        assert rank.eval_loss == pytest.approx(expected.eval_loss, rel=LOSS_TOLERANCE)
        for (name, start), values in rank.weights.items():
            theirs = expected.weights[name, 0][start : start + len(values)]
            assert (values - theirs).abs().max() < WEIGHT_TOLERANCE, name
            num_seen[name, 0] += len(values)
    for name, weights in expected.weights.items():
        assert num_seen[name] == len(weights), name


ON_TWO = (
    Way(2, 2, 2, accumulation=2, moe_chunks=3),
    Way(2, 2, 1, rows="one document", is_recomputed=False, optimizer="adamw"),
)
ON_FOUR = (
    Way(4, 2, 4, optimizer="adamw", accumulation=2),
    Way(4, 4, 2, rows="awkward", accumulation=4, moe_chunks=8),
    Way(4, 2, 1, rows="awkward", accumulation=2, is_recomputed=False),
)


@pytest.mark.parametrize(
    "way",
    [*ON_TWO, *(pytest.param(way, marks=pytest.mark.slow) for way in ON_FOUR)],
    ids=str,
)
def test_shared_rows_train_as_whole_ones_in_one_process(way: Way) -> None:
    ways = {2: ON_TWO, 4: ON_FOUR}[way.num_ranks]
    together = run_together(train_shared, way.num_ranks, tuple((one,) for one in ways))
    check_equal(way, together[way,])


def test_every_kernel_is_given_whole_rows_and_their_documents() -> None:
    ways = [
        Way(2, 2, 2, rows=rows, accumulation=2, attention=attention)
        for attention in (VARIABLE_LENGTH, FLASH_2, FLASH_3)
        for rows in ("packed", "awkward")
    ]
    ranks = run_ranks(train_with_stand_ins, 2, ways)
    for index, way in enumerate(ways):
        check_equal(way, [trained[index] for trained in ranks])


SPLITS = [
    (num_ranks, sequence_size, expert_size)
    for num_ranks, sequence_size in ((2, 2), (4, 2), (4, 4))
    for expert_size in (1, 2, 4)
    if expert_size <= num_ranks
]


def check_all(ways: list[Way]) -> None:
    ranks = run_ranks(train_each, ways[0].num_ranks, ways)
    for index, way in enumerate(ways):
        check_equal(way, [trained[index] for trained in ranks])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("rows", ["packed", "one document"])
@pytest.mark.parametrize(
    "split", SPLITS, ids="{0[0]} ranks, rows over {0[1]}, experts {0[2]}".format
)
def test_every_way_of_sharing_rows_equals_one_process(
    split: tuple[int, int, int], rows: str, optimizer: str
) -> None:
    options = product((True, False), (1, 2))
    check_all([Way(*split, rows, *option, optimizer) for option in options])


@pytest.mark.slow
@pytest.mark.parametrize("expert_size", [0, 1, 2, 4])
def test_every_number_of_chunks_equals_one_process(expert_size: int) -> None:
    way = Way(4, 2, expert_size, rows="awkward", accumulation=2)
    check_all([replace(way, moe_chunks=num_chunks) for num_chunks in (2, 4, 8)])


def test_router_losses_and_what_they_train_are_those_of_whole_rows() -> None:
    [whole] = run_ranks(train_shared, 1, Way(1, 1, 1, accumulation=2), True)
    shared = run_ranks(train_shared, 2, Way(2, 2, 2, accumulation=2, moe_chunks=3), True)
    for rank in shared:
        assert rank.router_losses == pytest.approx(whole.router_losses, rel=LOSS_TOLERANCE)
        assert rank.losses == pytest.approx(whole.losses, rel=LOSS_TOLERANCE)
        for (name, start), values in rank.weights.items():
            theirs = whole.weights[name, 0][start : start + len(values)]
            assert (values - theirs).abs().max() < WEIGHT_TOLERANCE, name


def losses_of_rows(sequence_size: int, batch: Batch, changed: Batch) -> list[Tensor]:
    engine = small_engine(stage=3, expert_size=2, sequence_size=sequence_size)
    with torch.no_grad():
        return [token_losses(engine, my_share([one], sequence_size)[0]) for one in (batch, changed)]


def test_a_changed_document_moves_no_other() -> None:
    lengths = [20, 28, 16]
    batch = make_batch(np.random.default_rng(5), lengths)
    changed = make_batch(np.random.default_rng(5), lengths)
    changed.input_ids[20:48] = (changed.input_ids[20:48] + 1) % SHAPE.vocab_size
    ranks = run_ranks(losses_of_rows, 4, 4, batch, changed)
    before, after = (torch.cat([rank[index] for rank in ranks]) for index in (0, 1))
    moved = (before - after).abs().split(lengths)
    assert moved[1].max() > 0.1
    for index in (0, 2):
        # Not 0: the experts' grouped products sum in another order when group sizes change.
        assert moved[index].max() < 1e-5, index


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_repeated_heads_are_those_that_their_queries_look_at(size: int) -> None:
    keys = torch.arange(2.0).view(1, 2, 1, 1).requires_grad_()
    repeated = repeat_heads(keys, size)
    assert repeated.flatten().tolist() == sorted([0.0, 1.0] * max(1, size // 2))
    repeated.sum().backward()
    assert keys.grad.flatten().tolist() == [max(1, size // 2)] * 2
