"""Adapters anywhere, experts split or not, train as PEFT's do in one plain process."""

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.save import save_checkpoint
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.batches.loader import Position
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_loss, plain_model
from tests.engines import WEIGHT_DECAY, my_share, resume, small_engine
from tests.ranks import run_ranks

NUM_STEPS = 5
RATE = 0.5


def adapters(targets: str, **settings: object) -> LoraConfig:
    return LoraConfig(
        use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules=targets, **settings
    )


def train_adapters(
    folder: Path,
    lora: LoraConfig,
    expert_size: int,
    num_steps: int,
    is_resumed: bool,
    sequence_size: int = 1,
) -> list[float]:
    """Train with SGD, whose steps show a wrong gradient scale; export before or after."""
    engine = small_engine(
        stage=3,
        expert_size=expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        lora=lora,
        sequence_size=sequence_size,
        moe_chunks=sequence_size,
    )
    state = TrainerState()
    checkpoint = folder / "step-000003"
    if is_resumed:
        state = resume(engine, checkpoint)
    if num_steps == 0:
        export_adapter(engine, folder / "before", lora, SHAPE, base_model="tiny")
    losses = []
    for step in range(state.step, num_steps):
        if step == 3 and not is_resumed:
            state = TrainerState(3, Position(), 0)
            save_checkpoint(engine, state, checkpoint, fingerprints={})
        batches = my_share(global_batch(step, 4), sequence_size)
        losses.append(train_step(engine, SFT, batches, learning_rate=RATE).loss)
    export_adapter(engine, folder / "after", lora, SHAPE, base_model="tiny")
    return losses


def train_plain(folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """PEFT on the plain model, from the same initial adapters, one document at a time."""
    model = peft.PeftModel.from_pretrained(plain_model(), folder, is_trainable=True)
    optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=RATE)
    losses = []
    for step in range(NUM_STEPS):
        loss = plain_loss(model, global_batch(step, 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, peft.get_peft_model_state_dict(model)


@pytest.mark.parametrize(
    ("targets", "expert_size", "sequence_size", "settings"),
    [
        ("attention", 2, 1, {}),
        ("experts", 2, 1, {}),
        ("experts", 1, 1, {}),
        ("all", 2, 1, {"use_rslora": True}),
        ("all", 2, 2, {}),
        ("shared_mlp,router,q_proj", 0, 1, {}),
        ("attention", 2, 1, {"use_dora": True}),
        ("attention", 0, 2, {"use_dora": True}),
    ],
)
def test_adapters_train_as_in_plain_peft(
    tmp_path: Path, targets: str, expert_size: int, sequence_size: int, settings: dict[str, bool]
) -> None:
    lora = adapters(targets, **settings)
    run_ranks(train_adapters, 2, tmp_path, lora, expert_size, 0, False)
    [losses, _] = run_ranks(
        train_adapters, 2, tmp_path, lora, expert_size, NUM_STEPS, False, sequence_size
    )
    expected_losses, expected = train_plain(tmp_path / "before")
    assert losses == pytest.approx(expected_losses, abs=2e-6)
    trained = peft.load_peft_weights(tmp_path / "after", device="cpu")
    before = peft.load_peft_weights(tmp_path / "before", device="cpu")
    assert trained.keys() == expected.keys()
    for name, values in trained.items():
        assert (values - expected[name]).abs().max() < 5e-6, name
    assert any((values - before[name]).abs().max() > 1e-3 for name, values in trained.items())


def test_resumed_expert_adapters_are_bit_equal(tmp_path: Path) -> None:
    lora = adapters("all")
    [losses, _] = run_ranks(train_adapters, 2, tmp_path, lora, 2, NUM_STEPS, False)
    whole = peft.load_peft_weights(tmp_path / "after", device="cpu")
    [later, _] = run_ranks(train_adapters, 2, tmp_path, lora, 2, NUM_STEPS, True)
    assert later == losses[3:]
    resumed = peft.load_peft_weights(tmp_path / "after", device="cpu")
    for name, values in whole.items():
        assert torch.equal(resumed[name], values), name
