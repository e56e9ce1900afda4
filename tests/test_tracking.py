"""A run's numbers, read back by each tracker's own reader."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hunyuan_train.config.run_files import ROUTER_LOAD
from tests.conftest import start_train
from tests.wandb_files import read_runs

SETTINGS = (
    *("--recipe", "tiny", "--logging_steps", "1", "--eval_steps", "2", "--save_steps", "2"),
    *("--eval_generate", "3", "--eval_max_new_tokens", "8", "--export", "false"),
    *("--report_to", "wandb,tensorboard", "--lr_scheduler_type", "constant"),
    *("--warmup_ratio", "0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that was resumed for a third."""
    os.environ["WANDB_MODE"] = "offline"
    folder = tmp_path_factory.mktemp("tracked") / "run"
    for steps, more in (("2", []), ("3", ["--resume_from_checkpoint", "auto"])):
        arguments = (*SETTINGS, "--output_dir", str(folder), "--max_steps", steps, *more)
        finished = start_train(*arguments, cwd=folder.parent)
        assert finished.returncode == 0, finished.stderr
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_wandb_holds_every_number_and_a_resumed_run_goes_on_in_the_same_one(folder: Path) -> None:
    ids, values = read_runs(folder)
    assert len(ids) == 1
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in set().union(*lines) - {"step"}:  # which tables and images carry too
        logged = [line[name] for line in lines if name in line]
        assert [value for value in values[name] if value in logged] == logged, name
    assert any(name.startswith("answers") for name in values)
    assert any(name.startswith("router_load") for name in values)


def test_tensorboard_holds_every_number(folder: Path) -> None:
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    lines = read_lines(folder / "metrics.jsonl")
    for name in set().union(*lines) - {"step"}:
        points = {event.step: event.value for event in reader.Scalars(name)}
        assert points == pytest.approx({line["step"]: line[name] for line in lines if name in line})


def test_losses_by_mode_make_up_the_loss(folder: Path) -> None:
    for line in read_lines(folder / "metrics.jsonl"):
        low, high = sorted((line["loss_fast"], line["loss_slow"]))
        assert low <= line["loss"] <= high


def test_samples_and_tokens_of_each_source_are_counted_on_over_a_resume(folder: Path) -> None:
    lines = read_lines(folder / "metrics.jsonl")
    seen = [line["samples_seen_tiny_train.jsonl"] for line in lines]
    assert seen == sorted(seen)
    assert len(set(seen)) == 3
    for line in lines:
        assert line["tokens_seen_tiny_train.jsonl"] == line["tokens_seen"]


def test_answers_are_kept_from_before_the_first_step_on(folder: Path) -> None:
    answers = read_lines(folder / "answers.jsonl")
    assert [answer["step"] for answer in answers] == [0] * 3 + [2] * 3 + [3] * 3
    assert {answer["mode"] for answer in answers} == {"fast", "slow"}
    kinds = [(line["step"], line["kind"]) for line in read_lines(folder / ROUTER_LOAD)]
    assert kinds == [(0, "profile"), (2, "load"), (3, "load")]


def test_each_start_says_what_the_run_is_made_of(folder: Path) -> None:
    first, second = read_lines(folder / "starts.jsonl")
    assert (first["step"], second["step"]) == (0, 2)
    assert first["data"]["samples"] == second["data"]["samples"]
    assert {"torch", "deepspeed", "transformers", "hunyuan_train"} <= first["versions"].keys()
    assert first["planned_memory_gib"] > 0
    assert first["num_processes"] == 2


def test_a_run_ends_with_its_report(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for text in ("held-out loss by mode", "load before training", "tiny_train.jsonl", "start 2"):
        assert text in page
