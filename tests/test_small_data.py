"""Whole runs on less data than there are ranks."""

import json
from pathlib import Path

import pytest

from tests.conftest import start_train
from tests.data.dialogues import chat

QUIET = ("--no_export", "--sample_answers", "false", "--router_guardian", "off")
MORE_EPOCHS = ("--resume_from_checkpoint", "auto", "--ignore_settings_change")


@pytest.mark.slow
def test_one_row_on_two_ranks_is_trained_evaluated_and_gone_on_with(tmp_path: Path) -> None:
    data, held_out, folder = tmp_path / "one.jsonl", tmp_path / "eval.jsonl", tmp_path / "run"
    data.write_text(json.dumps(chat("a", "b", mode="fast")))
    held_out.write_text(json.dumps(chat("c", "d", mode="fast")))
    flags = (
        *("--model_name_or_path", "tiny", "--num_processes", "2", "--max_seq_length", "256"),
        *("--train_data_file", str(data), "--eval_data_file", str(held_out), "--eval_steps", "1"),
        *("--output_dir", str(folder), *QUIET),
    )
    first = start_train(*flags, "--num_train_epochs", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    more = start_train(*flags, "--num_train_epochs", "3", *MORE_EPOCHS, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [numbers["step"] for numbers in metrics] == [1, 2, 3]
    assert all(numbers["eval_loss"] > 0 for numbers in metrics)
