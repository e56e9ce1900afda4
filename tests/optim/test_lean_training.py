"""A model trained with lean, experts split, ends where one trained with float32 AdamW does."""

from dataclasses import replace

import numpy as np
import pytest

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.step import train_step
from tests.batches import batch_of
from tests.engines import my_share, small_engine
from tests.ranks import run_ranks

SHAPE = replace(
    TINY,
    vocab_size=128,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_experts=8,
    moe_topk=2,
)
WEIGHTS = SeededWeights(seed=0, standard_deviation=0.05)
NUM_STEPS, LAST_STEPS = 300, 20
NUM_ROWS, ROW_LENGTH = 8, 33
RATE = 3e-3


def make_batches() -> list[list[Batch]]:
    """Walks on a random graph, fresh at every step.

    Each token has four successors, so that a good model's loss is that of a choice of four.
    """
    generator = np.random.default_rng(0)
    successors = generator.integers(0, SHAPE.vocab_size, (SHAPE.vocab_size, 4))
    rows = np.empty((NUM_STEPS, NUM_ROWS, ROW_LENGTH), dtype=np.int64)
    rows[:, :, 0] = generator.integers(0, SHAPE.vocab_size, (NUM_STEPS, NUM_ROWS))
    for position in range(1, ROW_LENGTH):
        choices = generator.integers(0, 4, (NUM_STEPS, NUM_ROWS))
        rows[:, :, position] = successors[rows[:, :, position - 1], choices]
    half = NUM_ROWS // 2
    prompts = [0] * half
    return [[batch_of(list(part), prompts) for part in (step[:half], step[half:])] for step in rows]


def train(optimizer: str) -> list[float]:
    engine = small_engine(
        stage=3,
        expert_size=2,
        optimizer=optimizer,
        is_bf16=optimizer == "lean",
        shape=SHAPE,
        source=WEIGHTS,
    )
    return [
        train_step(engine, SFT, my_share(batches), learning_rate=RATE).loss
        for batches in make_batches()
    ]


def losses_of(optimizer: str) -> list[float]:
    """The loss of each step, of all ranks."""
    return run_ranks(train, 2, optimizer)[0]


@pytest.mark.slow
def test_the_loss_after_300_steps_is_within_one_percent_of_adamws() -> None:
    adamw, lean = losses_of("adamw"), losses_of("lean")
    first, last = adamw[0], sum(adamw[-LAST_STEPS:]) / LAST_STEPS
    assert last < 0.5 * first, "the run must have learned something"
    assert sum(lean[-LAST_STEPS:]) / LAST_STEPS == pytest.approx(last, rel=0.01)
