"""A disk that fills up while a run goes on costs checkpoints, and neither the run nor its log."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.launcher.exit_codes import NO_ROOM
from tests.conftest import REPOSITORY

SETTINGS = (
    *("--recipe", "tiny", "--eval_data_file", "none", "--eval_steps", "0"),
    *("--max_seq_length", "256", "--overlong", "drop", "--logging_steps", "1"),
)
OFTEN = ("--max_steps", "16", "--save_steps", "2", "--save_total_limit", "1", "--no_export")
BLOCK = bytes(2**16)
DEADLINE_SECONDS = 300


def fill(path: Path) -> None:
    """Leave no byte free."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(BLOCK)
    except OSError:
        return


@dataclass
class Run:
    """A run that goes on beside the test."""

    folder: Path
    said: Path
    process: subprocess.Popen[bytes]

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.05)


@pytest.fixture
def start(make_disk: Callable[[float], Path], tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run on a small disk; nothing of it stays."""
    started = []

    def begin(*settings: str) -> Run:
        folder, said = make_disk(130) / "run", tmp_path / "said.txt"
        script = [sys.executable, str(REPOSITORY / "train.py"), *SETTINGS, *settings]
        with said.open("w") as output:
            process = subprocess.Popen(
                [*script, "--output_dir", str(folder)], stdout=output, stderr=output, cwd=tmp_path
            )
        started.append(process)
        return Run(folder, said, process)

    yield begin
    for process in started:
        process.terminate()
        process.wait()


# Saves once at the end, and exports the model.
AT_THE_END = ("--max_steps", "4", "--save_steps", "0", "--sample_answers", "no")


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_is_waited_for(start: Callable[..., Run]) -> None:
    run = start(*AT_THE_END)
    run.wait_until((run.folder / "metrics.jsonl").exists)
    rest = run.folder.with_name("rest")
    fill(rest)
    run.wait_until(lambda: "It is kept in memory" in run.said.read_text())
    rest.unlink()
    assert run.process.wait(DEADLINE_SECONDS) == 0, run.said.read_text()
    [last] = list_checkpoints(run.folder)
    assert checkpoint_step(last) == 4
    verify_checkpoint(last)
    assert (run.folder / "export" / "model.safetensors.index.json").exists()
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_disk_that_stays_full_has_an_exit_code_of_its_own(start: Callable[..., Run]) -> None:
    run = start(*AT_THE_END, "--wait_for_room_minutes", "0")
    run.wait_until((run.folder / "metrics.jsonl").exists)
    fill(run.folder.with_name("rest"))
    assert run.process.wait(DEADLINE_SECONDS) == NO_ROOM, run.said.read_text()
    assert "did not take its last checkpoint: make room there" in run.said.read_text()
    assert "Traceback" not in run.said.read_text()


@pytest.mark.slow
def test_a_run_outlives_a_full_disk(start: Callable[..., Run]) -> None:
    run = start(*OFTEN)
    run.wait_until(lambda: bool(list_checkpoints(run.folder)))
    rest = run.folder.with_name("rest")
    fill(rest)
    run.wait_until(lambda: "NOT SAVED" in run.said.read_text())
    rest.unlink()
    assert run.process.wait(DEADLINE_SECONDS) == 0, run.said.read_text()
    text = run.said.read_text()
    assert "Traceback" not in text
    assert "metrics.jsonl cannot be written: No space left on device" in text
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 17))
    [last] = list_checkpoints(run.folder)
    assert checkpoint_step(last) == 16
    verify_checkpoint(last)
