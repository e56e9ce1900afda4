"""Stopping a run on purpose: it finishes the step, saves, and says that it is to be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.folder import list_checkpoints, read_manifest
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.launcher.exit_codes import RESUME
from hunyuan_train.launcher.host.supervise import list_children
from tests.conftest import REPOSITORY

SETTINGS = (
    *("--recipe", "tiny", "--logging_steps", "1", "--eval_steps", "0", "--no_export"),
    *("--sample_answers", "false"),
)
DEADLINE_SECONDS = 300


def start(output_dir: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "train.py"), *SETTINGS, *settings]
    return subprocess.Popen(
        [*command, "--output_dir", str(output_dir)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=output_dir.parent,
    )


def wait_for_step(output_dir: Path, step: int) -> None:
    metrics, deadline = output_dir / "metrics.jsonl", time.monotonic() + DEADLINE_SECONDS
    while not (metrics.exists() and f'{{"step": {step}, ' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def find_ranks(process_id: int) -> Iterator[int]:
    """The processes below one that are ranks."""
    for child in list_children(process_id):
        if b"RANK=" in Path(f"/proc/{child}/environ").read_bytes():
            yield child
        yield from find_ranks(child)


def last_step(output_dir: Path) -> int:
    return int(json.loads((output_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "to_launcher"),
    [
        pytest.param(signal.SIGTERM, False, id="SIGTERM to one rank", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, True, id="SIGUSR1 to the launcher", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_asks_to_be_resumed(
    tmp_path: Path, number: signal.Signals, to_launcher: bool
) -> None:
    output_dir = tmp_path / "run"
    process = start(output_dir)
    wait_for_step(output_dir, 2)
    ranks = sorted(find_ranks(process.pid))
    assert len(ranks) == 2
    os.kill(process.pid if to_launcher else ranks[1], number)
    exit_code, said = finish(process)
    assert exit_code == RESUME, said
    assert "--resume_from_checkpoint auto" in said
    assert "Traceback" not in said
    [checkpoint] = list_checkpoints(output_dir)
    assert read_manifest(checkpoint)["state"]["step"] == last_step(output_dir)
    verify_checkpoint(checkpoint)


def test_ctrl_c_saves_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(output_dir)
    wait_for_step(output_dir, 2)
    process.send_signal(signal.SIGINT)
    exit_code, said = finish(process)
    assert exit_code == 128 + signal.SIGINT, said
    assert "stopping after this step, to save" in said
    [first] = list_checkpoints(output_dir)
    verify_checkpoint(first)
    stopped_at = last_step(output_dir)

    process = start(output_dir, "--resume_from_checkpoint", "auto")
    wait_for_step(output_dir, stopped_at + 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    exit_code, _ = finish(process)
    assert exit_code == 128 + signal.SIGINT
    assert first in list_checkpoints(output_dir)
    for checkpoint in list_checkpoints(output_dir):
        verify_checkpoint(checkpoint)


@pytest.mark.slow
def test_before_the_first_step_nothing_is_saved_and_it_says_so(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(output_dir, "--eval_generate", "32", "--eval_max_new_tokens", "900")
    wait_for_file(output_dir / "starts.jsonl")  # after it the questions are put
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    exit_code, said = finish(process)
    assert exit_code == 128 + signal.SIGINT, said
    assert "stopping at once: no step is under way, so nothing needs saving" in said
    assert "to save" not in said
    assert "before training" not in said, "the questions were all answered"
    assert not list_checkpoints(output_dir)


@pytest.mark.slow
def test_in_the_middle_of_the_first_step_it_is_finished_and_saved(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(output_dir, "--gradient_accumulation_steps", "16", "--record_batches")
    wait_for_file(output_dir / "log" / "batches-rank0.jsonl")  # of step 1, before it is trained on
    time.sleep(0.6)  # the launcher hears of it
    process.send_signal(signal.SIGINT)
    exit_code, said = finish(process)
    assert exit_code == 128 + signal.SIGINT, said
    assert "stopping after this step, to save" in said
    [checkpoint] = list_checkpoints(output_dir)
    assert read_manifest(checkpoint)["state"]["step"] == 1
    verify_checkpoint(checkpoint)
