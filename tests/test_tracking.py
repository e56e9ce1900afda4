"""A run's numbers, read back by each tracker's own reader."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hunyuan_train.config.run_files import ROUTER_LOAD
from tests.conftest import start_train
from tests.wandb_files import read_config, read_runs

SETTINGS = (
    *("--recipe", "tiny", "--logging_steps", "1", "--eval_steps", "2", "--save_steps", "2"),
    *("--eval_generate", "3", "--eval_max_new_tokens", "8", "--export", "false"),
    *("--report_to", "wandb,tensorboard", "--lr_scheduler_type", "constant"),
    *("--min_lr", "0", "--warmup_ratio", "0", "--sample_answers", "false"),
    # Drift is measured, and whatever random weights do is no alarm.
    *("--router_guardian", "warn", "--router_drift_limit", "1", "--router_entropy_fall", "1"),
    *("--router_dead_share", "1", "--router_violation_rise", "1"),
)

GROUPS = ("fast", "slow", "think", "answer", "markers")
SOURCE = "practice_train.jsonl"
# What a run is to tell; mfu and GPU memory join them where there is a GPU.
NAMES = {
    *("loss", "learning_rate", "grad_norm", "epoch", "tokens_seen", "packing_efficiency"),
    *(f"{kind}_{group}" for kind in ("loss", "eval_loss", "eval_perplexity") for group in GROUPS),
    *("tokens_per_second", "tokens_per_second_per_gpu", "tflops_per_gpu", "step_seconds"),
    *(f"seconds_{part}" for part in ("data", "forward", "backward", "optimizer", "communication")),
    *("memory_gib", "host_memory_gib", "host_memory_used"),
    *(f"samples_seen_{SOURCE}", f"tokens_seen_{SOURCE}"),
    *("checkpoint_step", "checkpoint_seconds", "checkpoint_stall_seconds", "checkpoint_failures"),
    *("restarts", "expert_imbalance", "router_entropy", "router_entropy_min", "dead_experts"),
    *("router_drift", "eval_valid_format", "eval_exact_match", "eval_set_f1"),
    *("eval_mode_leak_fast", "eval_mode_leak_slow"),
}


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


def test_a_run_tells_all_that_is_promised(folder: Path) -> None:
    lines = read_lines(folder / "metrics.jsonl")
    assert set().union(*lines) >= NAMES
    _, values = read_runs(folder)
    assert values.keys() >= NAMES
    assert [line["restarts"] for line in lines[1:]] == [0, 0, 1]
    assert [line.get("checkpoint_step") for line in lines] == [None, None, 2, 3]
    for line in lines[1:]:
        assert 0 < line["seconds_communication"] < line["step_seconds"]


def test_wandb_holds_every_number_and_a_resumed_run_goes_on_in_the_same_one(folder: Path) -> None:
    ids, values = read_runs(folder)
    assert len(ids) == 1
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]  # answers are judged before training
    for name in set().union(*lines) - {"step", "time"}:  # the first tables and images carry too
        logged = [line[name] for line in lines if name in line]
        assert [value for value in values[name] if value in logged] == logged, name
    assert any(name.startswith("answers") for name in values)
    assert any(name.startswith("router_load") for name in values)


def test_tensorboard_holds_every_number(folder: Path) -> None:
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    lines = read_lines(folder / "metrics.jsonl")
    for name in set().union(*lines) - {"step", "time"}:
        points = {event.step: event.value for event in reader.Scalars(name)}
        assert points == pytest.approx({line["step"]: line[name] for line in lines if name in line})


def test_losses_by_mode_make_up_the_loss(folder: Path) -> None:
    for line in read_lines(folder / "metrics.jsonl")[1:]:
        low, high = sorted((line["loss_fast"], line["loss_slow"]))
        assert low <= line["loss"] <= high


def test_samples_and_tokens_of_each_source_are_counted_on_over_a_resume(folder: Path) -> None:
    lines = read_lines(folder / "metrics.jsonl")[1:]
    seen = [line[f"samples_seen_{SOURCE}"] for line in lines]
    assert seen == sorted(seen)
    assert len(set(seen)) == 3
    for line in lines:
        assert line[f"tokens_seen_{SOURCE}"] == line["tokens_seen"]


def test_answers_are_kept_from_before_the_first_step_on(folder: Path) -> None:
    answers = read_lines(folder / "answers.jsonl")
    assert [answer["step"] for answer in answers] == [0] * 3 + [2] * 3 + [3] * 3
    assert {answer["mode"] for answer in answers} == {"fast", "slow"}
    kinds = [(line["step"], line["kind"]) for line in read_lines(folder / ROUTER_LOAD)]
    assert kinds == [(1, "profile"), (2, "load"), (3, "load")]


def test_each_start_says_what_the_run_is_made_of(folder: Path) -> None:
    first, second = read_lines(folder / "starts.jsonl")
    assert (first["step"], second["step"]) == (0, 2)
    assert first["data"]["samples"] == second["data"]["samples"]
    assert {"torch", "deepspeed", "transformers", "hunyuan_train"} <= first["versions"].keys()
    assert first["plan"]["memory_gib"] > 0
    assert {"device", "host", "disk"} <= first["plan"].keys()
    assert first["num_processes"] == 2
    config = read_config(folder)
    assert config["evaluation"]["eval_generate"] == 3
    for name in ("data", "git", "versions", "plan"):
        assert config["start"][name] == second[name]


def test_a_run_ends_with_its_report(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for text in ("Held-out loss by mode and span", "before training", SOURCE, '"step":"2","where"'):
        assert text in page
