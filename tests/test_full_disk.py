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
from tests.conftest import REPOSITORY

SETTINGS = (
    *("--recipe", "tiny", "--eval_data_file", "none", "--eval_steps", "0", "--no_export"),
    *("--max_seq_length", "256", "--overlong", "drop", "--logging_steps", "1"),
    *("--max_steps", "16", "--save_steps", "2", "--save_total_limit", "1"),
)
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
def run(make_disk: Callable[[float], Path], tmp_path: Path) -> Iterator[Run]:
    """A run on a small disk; nothing of it stays."""
    folder, said = make_disk(130) / "run", tmp_path / "said.txt"
    command = [sys.executable, str(REPOSITORY / "train.py"), *SETTINGS, "--output_dir", str(folder)]
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path)
    yield Run(folder, said, process)
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_a_run_outlives_a_full_disk(run: Run) -> None:
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
