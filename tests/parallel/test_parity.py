"""Every way of splitting the model trains it as one process without DeepSpeed does.

SGD shows wrong gradient scales, which Adam hides; AdamW with clipping and accumulation is what
people run. All in float32, with token counts that differ between ranks.
"""

import pytest
import torch
from torch import Tensor

from hunyuan_train.trainer.optim import decay_groups
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss, plain_model, released_state
from tests.engines import (
    LEARNING_RATES,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    kept_weights,
    my_share,
    small_engine,
)
from tests.ranks import run_ranks

NUM_STEPS = 6
BATCHES_PER_STEP = 4

Steps = list[tuple[float, float]]  # loss and gradient norm of each step


def train_split(
    stage: int, expert_size: int, optimizer: str, max_grad_norm: float
) -> tuple[Steps, dict[tuple[str, int], Tensor]]:
    """Train on this rank's share of each global batch; return steps and the weights kept here."""
    engine = small_engine(
        stage=stage, expert_size=expert_size, optimizer=optimizer, max_grad_norm=max_grad_norm
    )
    steps = []
    for step in range(NUM_STEPS):
        mine = my_share(global_batch(step, BATCHES_PER_STEP))
        result = train_step(engine, mine, learning_rate=LEARNING_RATES[optimizer])
        steps.append((result.loss, result.grad_norm))
    return steps, kept_weights(engine.module)


def train_plain(optimizer: str, max_grad_norm: float) -> tuple[Steps, dict[str, Tensor]]:
    """The same training without engine, ranks, packing or checkpointing."""
    model = plain_model()
    groups = decay_groups(model, WEIGHT_DECAY)
    rate = LEARNING_RATES[optimizer]
    if optimizer == "sgd":
        stepper: torch.optim.Optimizer = torch.optim.SGD(groups, lr=rate)
    else:
        stepper = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    steps = []
    for step in range(NUM_STEPS):
        loss = plain_loss(model, global_batch(step, BATCHES_PER_STEP))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
        stepper.step()
        stepper.zero_grad()
        steps.append((loss.item(), norm.item()))
    return steps, released_state(model)


@pytest.fixture(scope="module")
def plain_sgd() -> tuple[Steps, dict[str, Tensor]]:
    return train_plain("sgd", max_grad_norm=0.0)


@pytest.fixture(scope="module")
def plain_adamw() -> tuple[Steps, dict[str, Tensor]]:
    return train_plain("adamw", MAX_GRAD_NORM)


SPLITS = [
    pytest.param(2, 2, 0, id="2 ranks, ZeRO-2"),
    pytest.param(2, 3, 0, id="2 ranks, ZeRO-3"),
    pytest.param(2, 3, 2, id="2 ranks, ZeRO-3, experts over 2"),
    pytest.param(4, 3, 2, id="4 ranks, ZeRO-3, experts over 2, twice"),
]


@pytest.mark.parametrize(("world_size", "stage", "expert_size"), SPLITS)
def test_sgd_gives_the_weights_of_one_process(
    plain_sgd: tuple[Steps, dict[str, Tensor]], world_size: int, stage: int, expert_size: int
) -> None:
    expected_steps, expected_weights = plain_sgd
    ranks = run_ranks(train_split, world_size, stage, expert_size, "sgd", 0.0)
    for steps, weights in ranks:
        for (loss, _), (expected_loss, _) in zip(steps, expected_steps, strict=True):
            assert loss == pytest.approx(expected_loss, abs=1e-6)
        for (name, start), values in weights.items():
            expected = expected_weights[name][start : start + len(values)]
            assert (values - expected).abs().max() < 1e-6, name
    covered = {name for _, weights in ranks for name, _ in weights}
    assert covered == expected_weights.keys()


@pytest.mark.parametrize(("world_size", "stage", "expert_size"), SPLITS[:3])
def test_adamw_with_clipping_and_accumulation_takes_the_steps_of_one_process(
    plain_adamw: tuple[Steps, dict[str, Tensor]], world_size: int, stage: int, expert_size: int
) -> None:
    expected_steps, _ = plain_adamw
    ranks = run_ranks(train_split, world_size, stage, expert_size, "adamw", MAX_GRAD_NORM)
    for steps, _ in ranks:
        for (loss, norm), (expected_loss, expected_norm) in zip(steps, expected_steps, strict=True):
            assert loss == pytest.approx(expected_loss, abs=1e-5)
            assert norm == pytest.approx(expected_norm, abs=1e-5)
    assert min(norm for _, norm in expected_steps) > MAX_GRAD_NORM, (
        "clipping must have been at work"
    )
