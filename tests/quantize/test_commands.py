import json
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from hunyuan_train.export.manifest import write_manifest
from hunyuan_train.launcher.exit_codes import USER_ERROR
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.quantize.models import WIDE
from tests.quantize.planted import check_red, plant_in_float8
from tests.released import SHAPE, write_released


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write_released(folder, shape=WIDE, is_native=True)
    (folder / "hy.tiktoken").write_bytes((TINY_TOKENIZER / "hy.tiktoken").read_bytes())
    return folder


def test_a_model_without_dialogues_is_written_verified_and_said_to_be_unmeasured(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = model.parent / "out"
    assert main(["quantize", str(model), str(output), "--format", "fp8"]) == 0
    said = capsys.readouterr().out
    assert "held out left out: no held-out dialogues are known; give --eval_data FILE" in said
    assert "survival left out: no base model is known; give --base DIR" in said
    report = json.loads((output / "quantization_report.json").read_text())
    assert report["weights"]["relative_error"] < 0.03
    assert report["bytes_after"] < 0.7 * report["bytes_before"]
    assert main(["quantize", str(output), str(model.parent / "x"), "--format", "fp8"]) == USER_ERROR
    assert "is quantised already" in capsys.readouterr().err


def test_a_tensor_scaled_twice_turns_the_command_red(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_in_float8(monkeypatch)
    output = model.parent / "out"
    check_red(["quantize", str(model), str(output), "--format", "fp8"], output, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "int3"], "format is int3, which is none of fp8, fp8-block, w4a16"),
        (["--format", "fp8:e5m2"], "fp8 takes no type"),
        (["--format", "fp8", "--samples", "0"], "samples is 0; set it to 1 or more"),
        (["--format", "w4a16"], "none are known; give --train_data FILE"),
        (["--format", "fp8", "--base", "nowhere"], "base is nowhere, where there is no config"),
        (["--format", "fp8", "--eval_data", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = model.parent / "out"
    assert main(["quantize", str(model), str(output), *arguments]) == USER_ERROR
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "verifying" not in said.out + said.err
    assert not output.exists()


def test_what_is_no_model_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "fp8"]
    assert main(command) == USER_ERROR
    assert "because it does not exist" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "in").mkdir()
    assert main(command) == USER_ERROR
    assert "so it is no model and no adapter" in " ".join(capsys.readouterr().err.split())


def test_a_base_of_other_sizes_is_refused_and_one_that_is_gone_is_said(
    model: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, output = model.parent / "base", model.parent / "out"
    write_manifest(model, base)
    command = ["quantize", str(model), str(output), "--format", "fp8"]
    assert main(command) == 0
    assert f"the base model {base}, which the export names" in capsys.readouterr().out
    write_released(base, shape=replace(WIDE, num_hidden_layers=1), is_native=True)
    data = str(repository / "data" / "practice_train.jsonl")
    assert main([*command, "--overwrite", "--train_data", data]) == USER_ERROR
    assert "their weights have not the same names and sizes" in capsys.readouterr().err


def test_w4a16_says_how_to_get_what_it_needs(
    model: Path, capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    data = str(repository / "data" / "practice_train.jsonl")
    command = ["quantize", str(model), "out", "--format", "w4a16", "--train_data", data]
    assert main(command) == USER_ERROR
    assert "-m venv" in capsys.readouterr().err
    assert main([*command, "--python", "no-such-python"]) == USER_ERROR
    assert "python is no-such-python, which is no program" in capsys.readouterr().err
    write_released(model, shape=SHAPE, is_native=True)
    assert main(command) == USER_ERROR
    assert "do not divide the widths 48, 64, 128" in capsys.readouterr().err
