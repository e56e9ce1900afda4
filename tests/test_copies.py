"""A run whose machine vanishes goes on elsewhere, from the copies of its checkpoints."""

import json
import shutil
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints
from hunyuan_train.checkpoint.verify import verify_checkpoint
from tests.conftest import start_train

SETTINGS = (
    *("--recipe", "tiny", "--eval_data_file", "none", "--eval_steps", "0", "--no_export"),
    *("--max_seq_length", "256", "--overlong", "drop", "--sample_answers", "false"),
    *("--save_steps", "1", "--save_total_limit", "1", "--output_dir", "run"),
)
pytestmark = pytest.mark.slow


def test_a_run_goes_on_from_copies_on_another_disk(tmp_path: Path) -> None:
    run, copies = tmp_path / "run", tmp_path / "copies"
    copies.mkdir()
    # So slow that the next checkpoint is there, and would delete this one, before it has ended.
    away = f'sleep 3; cp -r "$1" {copies}/'
    ended = start_train(*SETTINGS, "--max_steps", "4", "--after_checkpoint", away, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "after_checkpoint is done for step-000004" in ended.stderr
    for step, copy in enumerate(sorted(copies.iterdir()), start=1):
        assert checkpoint_step(copy) == step
        verify_checkpoint(copy)
    assert step == 4
    assert [checkpoint_step(one) for one in list_checkpoints(run)] == [4]

    shutil.rmtree(run)
    back = f'mkdir -p "$1"/checkpoints; cp -r {copies}/* "$1"/checkpoints/'
    resume = ("--resume_from_checkpoint", "auto", "--before_resume", back)
    more = ("--max_steps", "5", "--ignore_settings_change", "--after_checkpoint", "test -d")
    ended = start_train(*SETTINGS, *resume, *more, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5]
