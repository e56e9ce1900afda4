"""What is due after which step, what is kept, and when a run ends."""

import json
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.folder import (
    checkpoint_folder,
    checkpoint_step,
    list_checkpoints,
    read_manifest,
)
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.schema import RunConfig, TrainConfig
from hunyuan_train.report.closing import closing_rows
from hunyuan_train.trainer.loop import TrainingResult, describe_step, is_due, wants_save
from hunyuan_train.trainer.state import Health, TrainerState
from tests.looped import run_loop
from tests.ranks import run_ranks


def test_a_logged_step_fits_a_hundred_columns() -> None:
    numbers = {
        "loss": 11.7654,
        "learning_rate": 1.234e-5,
        "grad_norm": 123.456,
        "tokens_per_second": 123456.7,
        "memory_gib": 139.53,
        "expert_imbalance": 12.345,
        "weights_moved": 0.123,
    }
    line = describe_step(numbers, 12345, 20000)
    assert line == (
        "step 12345/20000  loss 11.765  lr 1.2e-05  norm 123  123457 tok/s  139.5 GiB  skew 12.3  "
        "moved 12%"
    )
    assert len(line) <= 100


@pytest.mark.parametrize(
    ("step", "interval", "is_last", "expected"),
    [
        (4, 2, False, True),
        (5, 2, False, False),
        (5, 2, True, True),
        (5, 0, False, False),  # 0: only at the end
        (5, 0, True, True),
    ],
)
def test_what_happens_at_intervals_happens_at_the_end_too(
    step: int, interval: int, is_last: bool, expected: bool
) -> None:
    assert is_due(step, interval, is_last) is expected


@pytest.mark.parametrize(
    ("settings", "state", "saved_step", "expected"),
    [
        ({"save_steps": 4}, TrainerState(step=8), 4, True),
        ({"save_steps": 4}, TrainerState(step=7), 4, False),
        ({"save_steps": 4}, TrainerState(step=8), 8, False),
        # Bad steps put the save of step 8 off until one is good.
        ({"save_steps": 4}, TrainerState(step=8, health=Health(num_bad_in_a_row=1)), 4, False),
        ({"save_steps": 4}, TrainerState(step=9), 4, True),
        ({"save_steps": 0}, TrainerState(step=8), 0, False),
        ({"save_steps": 0, "save_best": True}, TrainerState(step=8, best_step=8), 0, True),
        ({"save_steps": 0, "save_best": True}, TrainerState(step=9, best_step=8), 8, False),
        ({"save_steps": 0, "save_best": False}, TrainerState(step=8, best_step=8), 0, False),
    ],
)
def test_a_checkpoint_is_due_at_its_interval_and_at_the_best_evaluation(
    settings: dict[str, object], state: TrainerState, saved_step: int, expected: bool
) -> None:
    assert wants_save(CheckpointConfig(**settings), state, saved_step) is expected


def test_a_run_logs_evaluates_and_saves_when_due_by_one_rank(tmp_path: Path) -> None:
    settings = {"max_steps": 5, "logging_steps": 3, "eval_steps": 2, "save_steps": 2}
    results = run_ranks(run_loop, 2, tmp_path, settings, (), None)
    assert [looped.result for looped in results] == [TrainingResult(True, True, 5)] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 5]
    assert [checkpoint_step(folder) for folder in list_checkpoints(tmp_path)] == [2, 4, 5]
    assert lines[-1]["checkpoint_step"] == 5  # it ended after its step was logged
    for rank in range(2):
        path = tmp_path / "log" / f"batches-rank{rank}.jsonl"
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == [1, 2, 3, 4, 5]


def test_a_stalled_run_is_complete_and_saved(tmp_path: Path) -> None:
    """Every batch is bad, so no weight moves and no evaluation is better than the first."""
    settings = {
        "max_steps": 9,
        "eval_steps": 1,
        "early_stopping_patience": 2,
        "max_bad_steps": 99,
        "save_best": True,
    }
    results = run_ranks(run_loop, 2, tmp_path, settings, range(9), None)
    for looped in results:
        assert looped.result == TrainingResult(is_complete=True, is_saved=True, step=3)
        assert looped.seen == [0, 1, 2]
    assert (tmp_path / "checkpoints" / "step-000003").exists()


def test_the_best_checkpoint_is_kept_beside_the_last_one(tmp_path: Path) -> None:
    """On random data a model first learns how often words come, and then by heart."""
    settings = {"max_steps": 8, "eval_steps": 1, "save_best": True, "save_total_limit": 1}
    results = run_ranks(run_loop, 2, tmp_path, settings | {"learning_rate": 3e-3}, (), None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["eval_loss"])["step"]
    assert 1 < best < 8, "or this test shows nothing"
    assert all(line["tokens_seen"] == line["tokens_seen_rows.jsonl"] for line in lines)
    assert [checkpoint_step(folder) for folder in list_checkpoints(tmp_path)] == [best, 8]
    assert read_manifest(checkpoint_folder(tmp_path, 8))["state"]["best_step"] == best
    assert verify_checkpoint(checkpoint_folder(tmp_path, best))["state"]["step"] == best
    config = RunConfig(
        train=TrainConfig(output_dir=str(tmp_path)), checkpoints=CheckpointConfig(save_best=True)
    )
    assert closing_rows(config)["best one"] == checkpoint_folder(tmp_path, best)
    assert all(looped.result.is_saved for looped in results)
