"""Needles are looked for before and after training, and the exported model finds the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from hunyuan_train import cli
from tests.conftest import start_train

LENGTHS, NUMBER, STEPS = (256, 448, 640), 2, 2
NAMES = {f"needles_{length}" for length in LENGTHS}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_in_training_and_the_exported_one_are_asked_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    asked = ["--needle_lengths", ",".join(map(str, LENGTHS)), "--needle_number", str(NUMBER)]
    settings = ["--recipe", "tiny", "--max_steps", str(STEPS), "--logging_steps", "1"]
    settings += ["--sample_answers", "false", "--output_dir", str(folder)]
    finished = start_train(*settings, *asked, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = read_lines(folder / "needles.jsonl")
    texts = [(length, depth) for length in LENGTHS for depth in (0.25, 0.75)]
    for step, model in ((0, "before training"), (STEPS, f"step {STEPS}")):
        mine = [row for row in rows if row["model"] == model]
        assert [(row["length"], row["depth"]) for row in mine] == texts
        assert {row["step"] for row in mine} == {step}
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in (lines[0], lines[-1]):
        assert line.keys() >= NAMES
    assert "before training  needles found  256: 0%  448: 0%  640: 0%" in finished.stderr

    command = ["evaluate", str(folder / "export"), *asked, "--json", "--run", str(folder)]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out).keys() == NAMES
    rows = read_lines(folder / "needles.jsonl")
    outputs = {
        model: [row["output"] for row in rows if row["model"] == model]
        for model in (f"step {STEPS}", str(folder / "export"))
    }
    trained, exported = outputs.values()
    assert trained == exported
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("<td>0 of 2</td>") == 3 * len(LENGTHS)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ([], "nothing to ask"),
        (["--needle_lengths", "9"], "such as 1024,4096,16384"),
        (["--needle_lengths", "512", "--run", "nowhere"], "output_dir of a run"),
        (["--needle_lengths", "512", "--needle_number", "0"], "1 or more"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "nowhere", *arguments]) == 2
    assert remedy in capsys.readouterr().err
