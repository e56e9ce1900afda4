"""A save beside training holds the state of its step, and no disk can end a run."""

import logging
import os
import re
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.checkpoint import save
from hunyuan_train.checkpoint.background import Saver
from hunyuan_train.checkpoint.folder import checkpoint_folder, list_checkpoints, read_manifest
from hunyuan_train.checkpoint.resume import choose_checkpoint
from hunyuan_train.checkpoint.state import collect_content
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.log import ScreenFilter
from hunyuan_train.model.safetensors_files import read_range
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.selftest.local_ranks import RanksError
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch
from tests.engines import my_share, small_engine
from tests.ranks import run_ranks

# For small disks: its checkpoint is larger than the room that a save leaves for other things.
LARGE = replace(SHAPE, num_hidden_layers=4)
LARGE_BYTES = 12 * count_parameters(LARGE).total
DiskUsage = namedtuple("DiskUsage", "total used free")


class Warnings(logging.Handler):
    """Keeps what the screen would show of this rank's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(ScreenFilter(int(os.environ["RANK"]), is_verbose=False))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def train_and_save(
    output_dir: Path, num_saves: int, settings: dict[str, object], spoil: str
) -> tuple[list[str], list[dict[str, Tensor]]]:
    """Save after every step; what was warned of, and the states at each save."""
    warnings = Warnings()
    logging.getLogger("hunyuan_train").addHandler(warnings)
    engine = small_engine(stage=3, expert_size=2, shape=LARGE if spoil else SHAPE)
    config = CheckpointConfig(**settings)
    saver = Saver(engine, None, output_dir, config, {}, {}, ranks_per_host=2)
    states = []
    for step in range(num_saves):
        batches = my_share(global_batch(step, 4))
        train_step(
            engine, SFT, batches, learning_rate=1e-3, wait_before_update=saver.wait_before_update
        )
        saver.report()
        if step == 1 and spoil == "full after all":  # room was there when it was looked for
            save.shutil.disk_usage = lambda _: DiskUsage(0, 0, 10**12)
        if step == 1 and spoil == "read-only":
            saver.finish()
            dist.barrier()
            if dist.get_rank() == 0:
                subprocess.run(["mount", "-o", "remount,ro", output_dir], check=True)
            dist.barrier()
        saver.save(TrainerState(step + 1))
        content = collect_content(engine, None)
        states.append({name: values.clone() for name, values in content.states.items()})
    saver.finish()
    return warnings.texts, states


@pytest.mark.parametrize("gib", ["auto", 0.0, 0.005])
def test_a_save_beside_training_holds_the_state_of_its_step(
    tmp_path: Path, gib: float | str
) -> None:
    ranks = run_ranks(train_and_save, 2, tmp_path, 3, {"snapshot_gib": gib}, "")
    for step in (1, 2, 3):
        folder = checkpoint_folder(tmp_path, step)
        verify_checkpoint(folder)
        for rank, (warnings, states) in enumerate(ranks):
            assert warnings == []
            locations = read_header(folder / f"rank-{rank:05d}.safetensors")
            for name, values in states[step - 1].items():
                assert torch.equal(read_range(locations[name], 0, len(values)), values), name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("full", r"has \d+\.\d MB free, and a checkpoint takes 3\d\.\d MB"),
        ("full after all", r"cannot be written: No space left on device"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_the_run(
    make_disk: Callable[[float], Path], spoil: str, message: str
) -> None:
    disk = make_disk(1.7 * LARGE_BYTES / 2**20)
    (warnings, _), (others, _) = run_ranks(train_and_save, 2, disk, 3, {}, spoil)
    assert len(warnings) == 2
    assert all(text.startswith(f"NOT SAVED: {disk}/checkpoints/step-00000") for text in warnings)
    assert re.search(message, warnings[0])
    assert "Training goes on" in warnings[0]
    assert others == []  # rank 0 says it for all
    assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-000001"]
    verify_checkpoint(checkpoint_folder(disk, 1))


def test_a_disk_that_cannot_be_written_to_does_not_end_the_run(
    make_disk: Callable[[float], Path],
) -> None:
    disk = make_disk(100)
    command = ["mount", "-o", "remount,ro", disk]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting read-only is not permitted here")
    (warnings, _), _ = run_ranks(train_and_save, 2, disk, 2, {}, "")
    assert len(warnings) == 2
    assert "cannot be written: Read-only file system" in warnings[0]


def test_a_disk_that_turns_read_only_leaves_the_old_checkpoint_and_the_run(
    make_disk: Callable[[float], Path],
) -> None:
    disk = make_disk(100)
    (warnings, _), (others, _) = run_ranks(train_and_save, 2, disk, 3, {}, "read-only")
    assert len(warnings) == 2
    assert all("cannot be made (Read-only file system)" in text for text in warnings)
    assert others == []
    verify_checkpoint(checkpoint_folder(disk, 1))


def test_a_weights_only_checkpoint_is_a_third(tmp_path: Path) -> None:
    run_ranks(train_and_save, 2, tmp_path, 1, {"save_only_model": True}, "")
    folder = checkpoint_folder(tmp_path, 1)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < 1.1 * 12 * count_parameters(SHAPE).total / 3
    assert read_manifest(folder)["is_model_only"]


def choose(output_dir: Path) -> tuple[str | None, list[str]]:
    """The checkpoint that a run would go on from, and what it says of others."""
    warnings = Warnings()
    logging.getLogger("hunyuan_train").addHandler(warnings)
    start_process_group(timeout_minutes=2)
    found = choose_checkpoint("auto", output_dir)
    dist.barrier()
    return found and found[0].name, warnings.texts


@pytest.fixture(scope="module")
def three_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    run_ranks(train_and_save, 2, folder, 3, {}, "")
    return folder


def flip_byte(folder: Path) -> None:
    file = folder / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_file(folder: Path) -> None:
    file = folder / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_file(folder: Path) -> None:
    (folder / "rank-00001.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_byte, "rank-00001.safetensors is not what was written: its checksum differs"),
        (cut_file, "rank-00001.safetensors has"),
        (remove_file, "rank-00001.safetensors is missing"),
    ],
)
def test_auto_falls_back_and_says_what_it_skipped(
    three_saved: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(three_saved, run)
    damage(checkpoint_folder(run, 3))
    (name, [warning]), other = run_ranks(choose, 2, run)
    assert name == "step-000002"
    assert warning.startswith("skipping")
    assert words in warning
    assert other == ("step-000002", []), "rank 0 says it for all"
    for step in (1, 2):
        damage(checkpoint_folder(run, step))
    with pytest.raises(RanksError, match="no checkpoint can be used"):
        run_ranks(choose, 2, run)
    assert len(list_checkpoints(run)) == 3, "a damaged checkpoint is left for its owner to look at"
