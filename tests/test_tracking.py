"""A run's numbers, read back by each tracker's own reader."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from hunyuan_train.trainer.router_guardian import LOAD_FILE
from tests.conftest import start_train

SETTINGS = (
    *("--recipe", "tiny", "--logging_steps", "1", "--eval_steps", "2", "--save_steps", "2"),
    *("--eval_generate", "3", "--eval_max_new_tokens", "8", "--export", "false"),
    *("--report_to", "wandb,tensorboard"),
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


def read_wandb(folder: Path) -> tuple[set[str], dict[str, list[float]]]:
    """Ids of the runs in a folder, and every value logged under each name."""
    ids, values = set(), {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                values.setdefault(name, []).append(json.loads(item.value_json))
    return ids, values


def test_wandb_holds_every_number_and_a_resumed_run_goes_on_in_the_same_one(folder: Path) -> None:
    ids, values = read_wandb(folder)
    assert len(ids) == 1
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in set().union(*lines):
        logged = [line[name] for line in lines if name in line]
        assert [value for value in values[name] if value in logged] == logged, name
    assert "answers" in values


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
    kinds = [(line["step"], line["kind"]) for line in read_lines(folder / LOAD_FILE)]
    assert kinds == [(0, "profile"), (2, "load"), (3, "load")]
