"""A resumed run is the uninterrupted run, bit for bit; what is not whole is not used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    checkpoint_folder,
    delete_old_checkpoints,
    find_checkpoint,
    list_checkpoints,
    read_manifest,
)
from hunyuan_train.checkpoint.fragments import open_tensors
from hunyuan_train.checkpoint.state import load_checkpoint, save_checkpoint
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.loader import Position
from hunyuan_train.model.layout import StoredTensor, pieces_of_range
from hunyuan_train.parallel.zero import read_state, state_kinds, trained_shards
from hunyuan_train.trainer.loop import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import kept_weights, my_share, small_engine
from tests.ranks import run_ranks

FINGERPRINTS = {"data": "a", "model": "b"}
NUM_STEPS = 5
SAVED_AT = 3

Outcome = tuple[list[float], dict[tuple[str, int], Tensor]]


def train_and_save(folder: Path, stage: int, expert_size: int, is_lora: bool) -> Outcome:
    """Train `NUM_STEPS` steps, saving on the way; return the losses and the weights kept here."""
    engine = small_engine(stage=stage, expert_size=expert_size, lora=lora_config(is_lora))
    losses = []
    for step in range(NUM_STEPS):
        if step == SAVED_AT:
            state = TrainerState(step, Position(epoch=1, row=7), 99)
            save_checkpoint(engine, state, folder, fingerprints=FINGERPRINTS)
            torch.rand(1)  # what happens after a checkpoint must not matter to it
        batches = my_share(global_batch(step, 4))
        losses.append(train_step(engine, batches, learning_rate=1e-3).loss)
    return losses, kept_weights(engine.module)


def resume_and_train(folder: Path, stage: int, expert_size: int, is_lora: bool) -> Outcome:
    """Start afresh, load the checkpoint, and train the remaining steps."""
    engine = small_engine(stage=stage, expert_size=expert_size, lora=lora_config(is_lora))
    state = load_checkpoint(engine, folder, fingerprints=FINGERPRINTS)
    assert state == TrainerState(SAVED_AT, Position(epoch=1, row=7), 99)
    losses = []
    for step in range(state.step, NUM_STEPS):
        batches = my_share(global_batch(step, 4))
        losses.append(train_step(engine, batches, learning_rate=1e-3).loss)
    return losses, kept_weights(engine.module)


def lora_config(is_lora: bool) -> LoraConfig | None:
    return LoraConfig(use_lora=True, lora_rank=4, lora_alpha=8) if is_lora else None


@pytest.mark.parametrize(
    ("stage", "expert_size", "is_lora"),
    [
        pytest.param(3, 2, False, id="ZeRO-3, experts split"),
        pytest.param(3, 0, False, id="ZeRO-3"),
        pytest.param(2, 0, False, id="ZeRO-2"),
        pytest.param(3, 2, True, id="adapters, frozen experts split"),
    ],
)
def test_resumed_run_is_bit_equal(
    tmp_path: Path, stage: int, expert_size: int, is_lora: bool
) -> None:
    folder = tmp_path / "step-000003"
    whole = run_ranks(train_and_save, 2, folder, stage, expert_size, is_lora)
    resumed = run_ranks(resume_and_train, 2, folder, stage, expert_size, is_lora)
    for (losses, weights), (later_losses, later_weights) in zip(whole, resumed, strict=True):
        assert later_losses == losses[SAVED_AT:]
        for key, values in weights.items():
            assert torch.equal(later_weights[key], values), key


@pytest.mark.parametrize(
    ("world_size", "stage", "expert_size"),
    [(1, 3, 0), (1, 3, 1), (4, 3, 2), (2, 3, 0), (2, 2, 0)],
)
def test_other_layouts_continue_the_same_run(
    saved_by_two: tuple[Path, Outcome], world_size: int, stage: int, expert_size: int
) -> None:
    folder, (losses, weights) = saved_by_two
    resumed = run_ranks(resume_and_train, world_size, folder, stage, expert_size, False)
    whole = join_ranges(weights)
    for later_losses, later_weights in resumed:
        assert later_losses == pytest.approx(losses[SAVED_AT:], abs=1e-6)
        for (name, start), values in later_weights.items():
            expected = whole[name][start : start + len(values)]
            assert (values - expected).abs().max() < 2e-5, name


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A checkpoint of two ranks with split experts, and how the run went on from it."""
    folder = tmp_path_factory.mktemp("run") / "step-000003"
    (losses, first), (_, second) = run_ranks(train_and_save, 2, folder, 3, 2, False)
    return folder, (losses, first | second)


def join_ranges(kept: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Whole tensors from the ranges that ranks keep."""
    names = {name for name, _ in kept}
    return {
        name: torch.cat([kept[key] for key in sorted(key for key in kept if key[0] == name)])
        for name in names
    }


def load_and_read_states(folder: Path, stage: int, expert_size: int) -> dict[str, Tensor]:
    """Every state of this rank right after loading, by kind and released tensor and position."""
    engine = small_engine(stage=stage, expert_size=expert_size)
    load_checkpoint(engine, folder, fingerprints=FINGERPRINTS)
    return {
        f"{kind}:{piece.tensor.name}:{piece.start}": read_state(engine, shard, kind)[
            piece.offset : piece.offset + piece.stop - piece.start
        ].clone()
        for shard in trained_shards(engine.module)
        for kind in state_kinds(engine)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop)
    }


@pytest.mark.parametrize(("world_size", "stage", "expert_size"), [(1, 3, 0), (4, 3, 2), (2, 2, 0)])
def test_other_layouts_start_from_the_same_bits(
    saved_by_two: tuple[Path, Outcome], world_size: int, stage: int, expert_size: int
) -> None:
    folder, _ = saved_by_two
    sources = open_tensors(folder, read_manifest(folder))
    assert sources.keys() == {"master", "exp_avg", "exp_avg_sq"}
    for states in run_ranks(load_and_read_states, world_size, folder, stage, expert_size):
        for key, values in states.items():
            kind, name, start = key.split(":")
            stored = StoredTensor(name, (int(start) + len(values),))
            saved = sources[kind].read(stored, int(start), int(start) + len(values))
            assert torch.equal(values, saved), key


def refuse_to_load(folder: Path, fingerprints: dict[str, str]) -> str:
    engine = small_engine(stage=3, expert_size=2)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(engine, folder, fingerprints=fingerprints)
    return str(error.value)


def test_run_on_other_data_is_refused(saved_by_two: tuple[Path, Outcome]) -> None:
    folder, _ = saved_by_two
    [message, _] = run_ranks(refuse_to_load, 2, folder, FINGERPRINTS | {"data": "other"})
    assert "another data (a, now other)" in message


def fake_checkpoint(output_dir: Path, step: int) -> Path:
    folder = checkpoint_folder(output_dir, step)
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(b"12345678")
    manifest = {"format_version": 1, "files": {"rank-00000.safetensors": {"size": 8}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_auto_takes_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint("auto", tmp_path) is None
    fake_checkpoint(tmp_path, 20)
    newest = fake_checkpoint(tmp_path, 100)
    fake_checkpoint(tmp_path, 120).rename(tmp_path / "checkpoints" / "step-000120.incomplete")
    (fake_checkpoint(tmp_path, 140) / "manifest.json").unlink()
    assert find_checkpoint("auto", tmp_path) == newest


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no manifest\.json"):
        find_checkpoint(str(tmp_path), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_cut_and_missing_files_are_named(tmp_path: Path, damage: str) -> None:
    folder = fake_checkpoint(tmp_path, 20)
    file = folder / "rank-00000.safetensors"
    if damage == "cut":
        file.write_bytes(b"1234")
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors (has 4 bytes|is missing)"):
        read_manifest(folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        fake_checkpoint(tmp_path, step)
    delete_old_checkpoints(tmp_path, 2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000020", "step-000030"]
    delete_old_checkpoints(tmp_path, 0)
    assert len(list_checkpoints(tmp_path)) == 2
    shutil.rmtree(tmp_path / "checkpoints")
    delete_old_checkpoints(tmp_path, 2)
