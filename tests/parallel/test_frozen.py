"""What is frozen stays as it was and is in no checkpoint; the rest trains as in one process."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.model.build import freeze_parameters
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss, plain_model, released_state
from tests.engines import WEIGHT_DECAY, kept_weights, my_share, save_checkpoint, small_engine
from tests.ranks import run_each

Kept = dict[tuple[str, int], Tensor]

NUM_STEPS, RATE = 3, 0.05
SETTINGS = {
    "routed experts": ModelConfig(freeze="*.mlp.experts.*"),
    "down projections and router": ModelConfig(freeze="*.experts.down_proj", freeze_router=True),
    "all but attention": ModelConfig(train_attention_params_only=True),
}


def train_frozen(folder: Path, config: ModelConfig, expert_size: int, is_bf16: bool) -> Kept:
    engine = small_engine(
        stage=3,
        expert_size=expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        model=config,
        is_bf16=is_bf16,
    )
    for step in range(NUM_STEPS):
        train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=RATE)
    save_checkpoint(engine, TrainerState(), folder)
    return kept_weights(engine.module)


def train_plain(config: ModelConfig) -> tuple[dict[str, Tensor], set[str]]:
    """Weights after the same steps in one process, and the released tensors that were trained."""
    model = plain_model()
    freeze_parameters(model, config)
    optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=RATE)
    for step in range(NUM_STEPS):
        plain_loss(model, global_batch(step, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {
        tensor.name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for tensor in stored_tensors(HUNYUAN_V1_MOE, name, tuple(parameter.shape))
    }
    return released_state(model), trained


Case = tuple[str, int, bool]  # what is frozen, ranks that share experts, whether in bfloat16
CASES: list[Case] = [
    ("routed experts", 2, False),
    ("routed experts", 2, True),
    ("down projections and router", 2, False),
    ("down projections and router", 0, False),
    ("all but attention", 2, False),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[Path, list[Kept]]]:
    """Checkpoint and weights of each rank after training, by case."""
    folders = [tmp_path_factory.mktemp("frozen") / "step-000003" for _ in CASES]
    arguments = [
        (folder, SETTINGS[name], *split)
        for folder, (name, *split) in zip(folders, CASES, strict=True)
    ]
    kept = run_each(train_frozen, 2, arguments)
    return dict(zip(CASES, zip(folders, kept, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_frozen_parameters_stay_and_the_others_train(
    trained: dict[Case, tuple[Path, list[Kept]]], case: Case
) -> None:
    name, _, is_bf16 = case
    folder, ranks = trained[case]
    before, (expected, names) = released_state(plain_model()), train_plain(SETTINGS[name])
    for kept in ranks:
        for (tensor, start), values in kept.items():
            if tensor in names and is_bf16:
                continue
            theirs = (expected if tensor in names else before)[tensor]
            theirs = theirs[start : start + len(values)].to(values.dtype)
            limit = 1e-6 if tensor in names else 0.0
            assert (values - theirs).abs().max() <= limit, tensor
    saved = {
        tensor.name
        for entry in read_manifest(folder)["files"].values()
        for parameter, (first_expert, _, _, *shape) in entry["ranges"].items()
        for tensor in stored_tensors(
            HUNYUAN_V1_MOE, parameter, tuple(shape), first_expert=first_expert
        )
    }
    assert saved == names
    assert any((expected[one] - before[one]).abs().max() > 1e-3 for one in names)
