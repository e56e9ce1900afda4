"""`quantize --format gguf:TYPE`, whole: by llama.cpp's own tools, with its losses and its end."""

import json
import os
import sys
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from hunyuan_train.export.manifest import write_manifest
from hunyuan_train.families.registry import read_shape
from hunyuan_train.quantize.gguf.weights import open_gguf
from tests.clients.environments import client_python
from tests.quantize.gguf.llama_cpp import WIDE, reader_folder
from tests.quantize.killed import kill_ten_times
from tests.quantize.planted import check_red, plant_in_gguf
from tests.taught import FAST, SLOW, write_base, write_taught_model


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a base, what it was tuned to, and the dialogues between them."""
    folder = tmp_path_factory.mktemp("gguf_command")
    write_base(folder / "base", **WIDE)
    write_taught_model(folder / "tuned", num_steps=8, **WIDE)
    write_manifest(folder / "tuned", folder / "base")
    records = [json.dumps(record, ensure_ascii=False) for record in (SLOW, FAST)]
    (folder / "dialogues.jsonl").write_text("\n".join(records))
    return folder


def quantize_command(tuned: Path, output: Path, type_: str) -> list[str]:
    command = ["quantize", str(tuned / "tuned"), str(output), "--format", f"gguf:{type_}"]
    for kind in ("train", "eval"):
        command += [f"--{kind}_data", str(tuned / "dialogues.jsonl")]
    return [*command, "--llama_cpp", client_python("llamacpp"), "--overwrite"]


@pytest.mark.slow
def test_losses_and_survival_are_measured_on_the_file(
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, reader_folder()])
    output, divergence = tmp_path / "out", {}
    for type_ in ("Q8_0", "Q4_K_M"):
        command = quantize_command(tuned, output, type_)
        assert main([*command, "--questions", "2", "--allow_loss"]) == 0
        report = json.loads((output / "quantization_report.json").read_text())
        assert report["left_out"] == {}
        assert report["survival"]["all"]["gain"] > 0.1
        assert report["survival"]["all"]["survives"] > (0.99 if type_ == "Q8_0" else 0.5)
        assert report["answers"].keys() == {"before", "after"}
        divergence[type_] = report["held_out"]["all"]["kl_divergence"]
        said = capsys.readouterr().out
        assert all(word in said for word in ("slow think", "fast answer", "perplexity", "GB after"))
    assert 0 < divergence["Q8_0"] < divergence["Q4_K_M"]


@pytest.mark.slow
def test_a_tensor_scaled_twice_turns_the_command_red(
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, reader_folder()])
    plant_in_gguf(monkeypatch)
    check_red(quantize_command(tuned, tmp_path / "out", "Q4_K_M"), tmp_path / "out", capsys)


@pytest.mark.slow
def test_ten_kills_leave_the_folder_whole_or_absent(tuned: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = quantize_command(tuned, output, "Q4_K_M")
    command = [sys.executable, "-m", "hunyuan_train", *words, "--questions", "0", "--allow_loss"]
    paths = [os.environ.get("PYTHONPATH"), reader_folder()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    shape = read_shape(tuned / "tuned")
    kill_ten_times(command, output, lambda one: open_gguf(one, shape), environment)
