"""Needles are looked for before and after training, and the exported model finds the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hunyuan_train import cli
from hunyuan_train.evaluation.needle_in_a_haystack import NEEDLE_SEED, make_needles
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import start_train
from tests.taught import teach

LENGTHS, NUMBER, STEPS = (256, 448, 640), 2, 2
SCORES = {"needles_256": 0.5, "needles_448": 0.5, "needles_640": 0.0}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A model that knows one answer to a short text, one to a longer one, none to the longest."""
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    needles = make_needles(tokenizer, LENGTHS, number=NUMBER, seed=NEEDLE_SEED)
    samples = []
    for needle in needles[0:3:2]:
        answer = [*tokenizer.encode(needle.question.reference), tokenizer.eos_id]
        ids = np.array([*needle.question.prompt, *answer])
        samples.append((ids, np.arange(len(ids)) >= len(needle.question.prompt)))
    return teach(tmp_path / "taught", tokenizer, samples)


@pytest.mark.slow
def test_the_model_in_training_and_the_exported_one_are_asked_the_same(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    asked = ["--needle_lengths", ",".join(map(str, LENGTHS)), "--needle_number", str(NUMBER)]
    settings = ["--recipe", "tiny", "--max_steps", str(STEPS), "--logging_steps", "1"]
    settings += ["--train_data_file", "data/tiny_train.jsonl"]
    settings += ["--model_name_or_path", str(taught), "--learning_rate", "1e-9", "--min_lr", "0"]
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
        assert {name: line[name] for name in SCORES} == SCORES
    assert "before training  needles found  256: 50%  448: 50%  640: 0%" in finished.stderr

    command = ["evaluate", str(folder / "export"), *asked, "--json", "--run", str(folder)]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out) == SCORES
    rows = read_lines(folder / "needles.jsonl")
    outputs = {
        model: [row["output"] for row in rows if row["model"] == model]
        for model in (f"step {STEPS}", str(folder / "export"))
    }
    trained, exported = outputs.values()
    assert trained == exported
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.count(f'"1 of {NUMBER}"') == 3 * 2
    assert page.count(f'"0 of {NUMBER}"') == 3


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
