"""What is not whole is not used, and what is damaged is named."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    checkpoint_folder,
    find_checkpoint,
    list_checkpoints,
    read_manifest,
    write_manifest,
)
from hunyuan_train.checkpoint.publish import hash_file
from hunyuan_train.checkpoint.retention import delete_leftovers, delete_superfluous
from hunyuan_train.cli import main
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.trainer.state import TrainerState
from tests.manifests import make_manifest

FILE = "rank-00001.safetensors"
Manifest = dict[str, Any]


def write_fake(output_dir: Path, step: int) -> Path:
    """A checkpoint of two files whose content means nothing."""
    folder = checkpoint_folder(output_dir, step)
    folder.mkdir(parents=True)
    files = {}
    for name in ("rank-00000.safetensors", FILE):
        (folder / name).write_bytes(f"12345678 {name}".encode())
        size = (folder / name).stat().st_size
        files[name] = {"size": size, "sha256": hash_file(folder / name)}
    write_manifest(folder, make_manifest(files))
    return folder


def cut(folder: Path) -> None:
    (folder / FILE).write_bytes(b"1234")


def remove(folder: Path) -> None:
    (folder / FILE).unlink()


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / FILE).read_bytes())
    content[7] ^= 1
    (folder / FILE).write_bytes(content)


def change_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"size": 31', '"size": 32'))


def cut_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text()[:-20])


def flip_version(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 4', '"format_version": 7'))


def nest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 10**6)


def replace_by_pipe(folder: Path) -> None:
    for name in (FILE, "manifest.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)


DAMAGES = [
    (flip_version, r"manifest\.json is not what was written: its checksum differs"),
    (nest, r"manifest\.json cannot be read: it is nested too deeply"),
    (replace_by_pipe, r"manifest\.json cannot be read: it is no ordinary file"),
    (cut, rf"{FILE} has 4 bytes, the manifest says 31"),
    (remove, rf"{FILE} is missing"),
    (flip_byte, rf"{FILE} is not what was written: its checksum differs"),
    (change_manifest, r"manifest\.json is not what was written"),
    (cut_manifest, r"manifest\.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_verify_names_the_damaged_file(
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_fake(tmp_path, 20)
    assert main(["verify", str(folder)]) == 0
    assert "step-000020 is whole" in capsys.readouterr().out
    damage(folder)
    assert main(["verify", str(folder)]) == 1
    output = capsys.readouterr().out
    assert re.search(message, " ".join(output.split()))


def without(name: str) -> Callable[[Manifest], object]:
    return lambda manifest: manifest.pop(name)


def put(name: str, value: object) -> Callable[[Manifest], object]:
    return lambda manifest: manifest.update({name: value})


def change_state(name: str, value: object) -> Callable[[Manifest], object]:
    return lambda manifest: manifest["state"].update({name: value})


def put_ranges(value: object) -> Callable[[Manifest], object]:
    return lambda manifest: manifest["files"][FILE].update(ranges=value)


def name_outside(manifest: Manifest) -> None:
    manifest["files"]["../../secret.safetensors"] = manifest["files"].pop(FILE)


RESEALED: list[Callable[[Manifest], object]] = [
    *(without(name) for name in ("files", "state", "kinds", "is_model_only", "fingerprints")),
    *(put("files", value) for value in (None, [], {}, {FILE: {}}, {"rank-00000.safetensors": 1})),
    *(put("state", value) for value in ([], {}, {"step": "3"}, {"step": 3, "best_step": "x"})),
    *(change_state("step", value) for value in (-7, 10**30, True, 3.0)),
    *(change_state("position", value) for value in ("x", {}, {"epoch": 0, "row": -1}, None)),
    *(change_state("health", value) for value in ([], {}, {"recent_losses": ["x"]})),
    *(change_state(name, "x") for name in ("tokens_seen", "best_value", "samples_seen", "more")),
    put("state", {"step": 3}),
    put("fingerprints", {"model": 5, "code": 5, "settings": 5, "data": 5}),
    put("optimizer_step_count", -1),
    put("kinds", ["master", 5]),
    put("kinds", ["master", "master"]),
    *(
        put_ranges(value)
        for value in (
            "x",
            {"w": []},
            {"w": "x"},
            {"w": [0, 0, 10**30, 10**30]},
            {"w": [0, -1, 1, 4]},
            {"w": [0, 0, 9, 4]},
            {"w": [0, 0, 10**12, 10**12]},
            {"w": [0.5, 0, 1, 4]},
        )
    ),
    put("kinds", ["exp_avg"]),
    put("kinds", "master"),
    lambda manifest: manifest["files"][FILE].pop("sha256"),
    lambda manifest: manifest["files"][FILE].update(size="31"),
    lambda manifest: manifest["files"][FILE].update(ranges=[]),
    lambda manifest: manifest["files"].pop("rank-00000.safetensors"),
    name_outside,
]


@pytest.mark.parametrize("change", RESEALED)
def test_manifest_that_no_run_writes_is_refused_though_its_checksum_is_right(
    tmp_path: Path, change: Callable[[Manifest], object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_fake(tmp_path, 20)
    shutil.copy(folder / FILE, tmp_path / "secret.safetensors")
    manifest = read_manifest(folder)
    change(manifest)
    write_manifest(folder, manifest)
    assert main(["verify", str(folder)]) == 1
    assert "is not what a run writes" in capsys.readouterr().out


def test_verify_of_a_run_looks_at_every_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (10, 20, 30):
        write_fake(tmp_path, step)
    flip_byte(checkpoint_folder(tmp_path, 20))
    assert main(["verify", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert output.count("is whole") == 2
    assert "step-000020" in output
    assert main(["verify", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("damage", [cut, remove, change_manifest, cut_manifest])
def test_auto_passes_over_what_is_seen_to_be_damaged(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    assert find_checkpoint("auto", tmp_path) is None
    good = write_fake(tmp_path, 20)
    damage(write_fake(tmp_path, 100))
    write_fake(tmp_path, 120).rename(tmp_path / "checkpoints" / "step-000120.incomplete")
    (write_fake(tmp_path, 140) / "manifest.json").unlink()
    skipped: list[str] = []
    assert find_checkpoint("auto", tmp_path, skip=skipped.append) == good
    assert len(skipped) == 1
    assert "step-000100" in skipped[0]


def test_auto_does_not_start_afresh_over_damaged_checkpoints(tmp_path: Path) -> None:
    cut(write_fake(tmp_path, 20))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used.*has 4 bytes"):
        find_checkpoint("auto", tmp_path)


def test_a_damaged_one_that_is_named_is_told_with_those_beside_it(tmp_path: Path) -> None:
    write_fake(tmp_path, 20)
    cut(damaged := write_fake(tmp_path, 26))
    words = r"resume_from_checkpoint is .*step-000026, which cannot be used: .*has 4 bytes"
    with pytest.raises(CheckpointError, match=rf"{words}.*take one of step-000020 beside it"):
        find_checkpoint(str(damaged), tmp_path)


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no manifest\.json"):
        find_checkpoint(str(tmp_path), tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = write_fake(tmp_path, 20)
    write_manifest(folder, {"format_version": 1, "files": {}})  # all that it shares with this one
    with pytest.raises(CheckpointError, match="has checkpoint format 1"):
        read_manifest(folder)


def test_the_format_before_is_read(tmp_path: Path) -> None:
    folder = write_fake(tmp_path, 20)
    write_manifest(folder, read_manifest(folder) | {"format_version": 3})
    assert read_manifest(folder)["format_version"] == 3


@pytest.mark.parametrize(
    ("settings", "best", "kept"),
    [
        ({"save_total_limit": 2}, None, [40, 50]),
        ({"save_total_limit": 0}, 10, [10, 20, 30, 40, 50]),
        ({"save_total_limit": 2, "save_keep_every": 20}, None, [20, 40, 50]),
        ({"save_total_limit": 1}, 30, [30, 50]),
        ({"save_total_limit": 9, "save_keep_every": 20}, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_what_is_asked_for_is_kept(
    tmp_path: Path, settings: dict[str, int], best: int | None, kept: list[int]
) -> None:
    for step in (10, 20, 30, 40, 50):
        write_fake(tmp_path, step)
    config = CheckpointConfig(save_best=best is not None, **settings)
    delete_superfluous(tmp_path, config, TrainerState(step=50, best_step=best))
    names = [f"step-{step:06d}" for step in kept]
    assert [folder.name for folder in list_checkpoints(tmp_path)] == names
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_a_damaged_later_checkpoint_pushes_out_no_good_one(tmp_path: Path) -> None:
    """A run went on from 20 because 40 is damaged, and has saved 30."""
    for step in (20, 30, 40):
        write_fake(tmp_path, step)
    delete_superfluous(tmp_path, CheckpointConfig(save_total_limit=1), TrainerState(step=30))
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000030", "step-000040"]


def test_what_killed_processes_left_behind_goes(tmp_path: Path) -> None:
    whole = write_fake(tmp_path, 10)
    for suffix in (".incomplete", ".replaced"):
        folder = write_fake(tmp_path, 20)
        folder.rename(folder.with_name(folder.name + suffix))
    delete_leftovers(whole.parent)
    assert list(whole.parent.iterdir()) == [whole]
