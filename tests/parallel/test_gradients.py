"""Losses and gradients of every parameter are those of Transformers, however the model is split.

One process, Transformers' own loading of the same folder, each document alone; against ranks that
read their parts of either layout and compute packed rows. All in float32.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import HunYuanMoEV1Config

from hunyuan_train.export.check import load_served
from hunyuan_train.families.registry import family_of
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss, released_state
from tests.engines import WEIGHT_DECAY, kept_weights, my_share, small_engine
from tests.ranks import run_together
from tests.released import SHAPE, write_released

NUM_BATCHES = 4
TOLERANCE = 1e-5


def split_gradients(base: Path, expert_size: int) -> tuple[list[Tensor], dict]:
    """Losses of each token of this rank's rows, and its part of what a step of SGD subtracts.

    At rate 1 that is the gradient itself, and the weight decay, which is known.
    """
    engine = small_engine(
        stage=3,
        expert_size=expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        shape=SHAPE,
        source=SafetensorsFolder.open(base, SHAPE),
    )
    batches = my_share(global_batch(0, NUM_BATCHES))
    with torch.no_grad():
        losses = [token_losses(engine, batch).clone() for batch in batches]
    before = kept_weights(engine.module)
    train_step(engine, SFT, batches, learning_rate=1.0)
    after = kept_weights(engine.module)
    return losses, {key: before[key] - after[key] for key in before}


def plain_gradients(base: Path) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same with Transformers alone."""
    config = HunYuanMoEV1Config(**family_of(SHAPE).native_config(SHAPE))
    model = load_served(base, torch.float32, config)
    batches = global_batch(0, NUM_BATCHES)
    losses = [plain_token_losses(model, batch) for batch in batches]
    plain_loss(model, batches).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.flatten(1 if ".experts." in name else 0).abs().amax(-1).min() > 1e-4
    with torch.no_grad():
        for group in decay_groups(model, WEIGHT_DECAY):
            for parameter in group["params"]:
                parameter.copy_(parameter.grad + group["weight_decay"] * parameter)
    return losses, released_state(model)


@torch.no_grad()
def plain_token_losses(model: nn.Module, batch) -> Tensor:
    parts = []
    for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        logits = model(input_ids=torch.from_numpy(batch.input_ids[start:stop])[None]).logits[0]
        labels = torch.from_numpy(batch.labels[start:stop])
        parts.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Models on disk, with fused experts or single ones."""
    folders = {is_fused: tmp_path_factory.mktemp("base") for is_fused in (False, True)}
    for is_fused, folder in folders.items():
        write_released(folder, is_fused=is_fused, is_native=is_fused, dtype=torch.float32)
    return folders


# By number of ranks: those that share one set of experts, and whether these come fused.
CASES = {
    1: [(1, False)],
    2: [(1, True), (2, False)],
    4: [(1, False), (2, True), (4, True)],
}


@pytest.mark.parametrize(
    ("world_size", "expert_size", "is_fused"),
    [(size, *case) for size, cases in CASES.items() for case in cases],
)
def test_losses_and_gradients_are_those_of_transformers(
    bases: dict[bool, Path], world_size: int, expert_size: int, is_fused: bool
) -> None:
    expected_losses, expected = plain_gradients(bases[is_fused])
    cases = tuple((bases[fused], size) for size, fused in CASES[world_size])
    ranks = run_together(split_gradients, world_size, cases)[bases[is_fused], expert_size]
    losses = [one for rank_losses, _ in ranks for one in rank_losses]
    for ours, theirs in zip(losses, expected_losses, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE
    num_seen = dict.fromkeys(expected, 0)
    for _, gradients in ranks:
        for (name, start), values in gradients.items():
            theirs = expected[name][start : start + len(values)]
            assert (values - theirs).abs().max() < TOLERANCE, name
            num_seen[name] += len(values)
    for name, gradient in expected.items():
        assert num_seen[name] == len(gradient), name
