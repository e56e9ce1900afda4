"""The proof of resume proves, and fails where something differs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.checkpoint.folder import (
    checkpoint_folder,
    read_manifest,
    write_manifest,
)
from hunyuan_train.checkpoint.publish import hash_file
from hunyuan_train.cli import main
from hunyuan_train.verify_resume import Certificate, compare
from tests.conftest import REPOSITORY
from tests.manifests import make_manifest

FILE = "rank-00000.safetensors"


def write_run(folder: Path) -> None:
    """What a run leaves that the proof looks at."""
    checkpoint = checkpoint_folder(folder, 3)
    checkpoint.mkdir(parents=True)
    save_file({"master:a": torch.arange(9.0), "exp_avg:a": torch.ones(9)}, checkpoint / FILE)
    seal(checkpoint)
    (folder / "log").mkdir()
    lines = [json.dumps({"step": step, "sha256": f"{step}"}) + "\n" for step in (1, 2, 3)]
    (folder / "log" / "batches-rank0.jsonl").write_text("".join(lines))
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5, "step_seconds": 1.0}\n')


def seal(checkpoint: Path, step: int = 3) -> None:
    file = checkpoint / FILE
    entry = {"size": file.stat().st_size, "sha256": hash_file(file)}
    manifest = make_manifest({FILE: entry})
    manifest["state"]["step"] = step
    write_manifest(checkpoint, manifest)


def change_tensor(run: Path) -> None:
    checkpoint = checkpoint_folder(run, 3)
    tensors = load_file(checkpoint / FILE)
    tensors["exp_avg:a"][4] += 2**-20
    save_file(tensors, checkpoint / FILE)
    seal(checkpoint)


def change_state(run: Path) -> None:
    assert read_manifest(checkpoint_folder(run, 3))
    seal(checkpoint_folder(run, 3), step=4)


def change_batch(run: Path) -> None:
    path = run / "log" / "batches-rank0.jsonl"
    path.write_text(path.read_text().replace('"sha256": "2"', '"sha256": "x"'))


def lose_batch(run: Path) -> None:
    path = run / "log" / "batches-rank0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def change_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 0.6, "step_seconds": 1.0}\n')


def change_clock(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5, "step_seconds": 9.0}\n')


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (lambda _: None, []),
        (change_clock, []),
        (change_tensor, [f"{FILE}: exp_avg:a"]),
        (change_state, ["manifest.json: the runs stand elsewhere"]),
        (change_batch, ["batches-rank0.jsonl: step 2"]),
        (lose_batch, ["batches-rank0.jsonl: step 3 lines against 2"]),
        (change_metrics, ["metrics.jsonl: step 3"]),
    ],
)
def test_every_difference_is_found(
    tmp_path: Path, change: Callable[[Path], None], differences: list[str]
) -> None:
    write_run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    change(tmp_path / "resumed")
    certificate = Certificate("", {}, 2, 1, 3, 1)
    compare(tmp_path / "whole", tmp_path / "resumed", certificate)
    assert certificate.differences == differences
    assert (certificate.num_tensors, certificate.num_bytes) == (2, 72)
    assert certificate.num_batches == 3


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_a_run_killed_and_resumed_here_is_the_uninterrupted_one(
    objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "run"
    arguments = ["--output_dir", str(output_dir), "--max_steps", "4", "--save_steps", "1"]
    if objective != "sft":
        data, layout = tmp_path / "data.jsonl", "labels" if objective == "kto" else "pairs"
        script = REPOSITORY / "examples/make_preferences.py"
        subprocess.run([sys.executable, script, data, "--layout", layout], check=True)
        arguments += ["--train_data_file", str(data), "--max_seq_length", "512"]
    arguments += ["--objective", objective, "--eval_steps", "0"]
    assert main(["verify-resume", "tiny", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("CERTIFICATE OF RESUME")
    assert "and 8 batches, bit for bit" in said
    folder = tmp_path / "run.verify-resume"
    assert json.loads((folder / "certificate.json").read_text())["differences"] == []
    assert not list(folder.glob("*/checkpoints"))


def test_a_run_that_saves_too_late_cannot_prove_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify-resume", "tiny", "--max_steps", "3", "--save_steps", "3"]) == 2
    assert "must save before its last step" in " ".join(capsys.readouterr().err.split())
