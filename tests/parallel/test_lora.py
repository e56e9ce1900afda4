"""Adapters anywhere, experts split or not, train as PEFT's do in one plain process."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.batches.loader import Position
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_model
from tests.engines import my_share, resume, save_checkpoint, small_engine
from tests.plain_adapters import RATE, train_with_peft
from tests.ranks import run_each, run_ranks

NUM_STEPS = 5


def adapters(targets: str, **settings: object) -> LoraConfig:
    return LoraConfig(
        use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules=targets, **settings
    )


@dataclass(frozen=True)
class Case:
    """Where adapters go, and how the model is split."""

    targets: str
    expert_size: int
    sequence_size: int = 1
    settings: tuple[str, ...] = ()

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(
            use_lora=True,
            lora_rank=8,
            lora_alpha=16,
            lora_target_modules=self.targets,
            **dict.fromkeys(self.settings, True),
        )

    def __str__(self) -> str:
        split = f"experts over {self.expert_size}, rows over {self.sequence_size}"
        return ", ".join([self.targets, split, *self.settings])


CASES = [
    Case("attention", 2),
    Case("experts", 2),
    Case("experts", 1),
    Case("all", 2, settings=("use_rslora",)),
    Case("all", 2, 2),
    Case("shared_mlp,router,q_proj", 0),
    Case("attention", 2, settings=("use_dora",)),
    Case("attention", 0, 2, ("use_dora",)),
]


def train_adapters(folder: Path, case: Case, *, is_resumed: bool = False) -> list[float]:
    """Train with SGD, whose steps show a wrong gradient scale; export before and after."""
    engine = small_engine(
        stage=3,
        expert_size=case.expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        lora=case.lora,
        sequence_size=case.sequence_size,
        moe_chunks=case.sequence_size,
    )
    checkpoint = folder / "step-000003"
    if is_resumed:
        state = resume(engine, checkpoint)
    else:
        state = TrainerState()
        export_adapter(engine, folder / "before", case.lora, SHAPE, base_model="tiny")
    losses = []
    for step in range(state.step, NUM_STEPS):
        if step == 3 and not is_resumed:
            save_checkpoint(engine, TrainerState(3, Position(), 0), checkpoint)
        batches = my_share(global_batch(step, 4), case.sequence_size)
        losses.append(train_step(engine, SFT, batches, learning_rate=RATE).loss)
    export_adapter(engine, folder / "after", case.lora, SHAPE, base_model="tiny")
    return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[list[float], Path]]:
    """Losses and folder of every case."""
    folders = [tmp_path_factory.mktemp("adapters") for _ in CASES]
    losses = [
        first for first, _ in run_each(train_adapters, 2, list(zip(folders, CASES, strict=True)))
    ]
    return dict(zip(CASES, zip(losses, folders, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapters_train_as_in_plain_peft(
    trained: dict[Case, tuple[list[float], Path]], case: Case
) -> None:
    losses, folder = trained[case]
    expected_losses, expected = train_with_peft(plain_model(), folder / "before", NUM_STEPS)
    assert losses == pytest.approx(expected_losses, abs=2e-6)
    after = peft.load_peft_weights(folder / "after", device="cpu")
    before = peft.load_peft_weights(folder / "before", device="cpu")
    assert after.keys() == expected.keys()
    for name, values in after.items():
        assert (values - expected[name]).abs().max() < 5e-6, name
    assert any((values - before[name]).abs().max() > 1e-3 for name, values in after.items())


def resume_adapters(folder: Path, case: Case) -> list[float]:
    return train_adapters(folder, case, is_resumed=True)


def test_resumed_expert_adapters_are_bit_equal(
    trained: dict[Case, tuple[list[float], Path]], tmp_path: Path
) -> None:
    case = CASES[3]
    losses, folder = trained[case]
    shutil.copytree(folder / "step-000003", tmp_path / "step-000003")
    [later, _] = run_ranks(resume_adapters, 2, tmp_path, case)
    assert later == losses[3:]
    whole = peft.load_peft_weights(folder / "after", device="cpu")
    resumed = peft.load_peft_weights(tmp_path / "after", device="cpu")
    assert whole.keys() == resumed.keys()
    for name, values in whole.items():
        assert torch.equal(resumed[name], values), name
