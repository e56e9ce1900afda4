"""What the tests of every part share."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

Finished = subprocess.CompletedProcess[str]


@pytest.fixture
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture
def run_train(tmp_path: Path) -> Callable[..., Finished]:
    """Run `train.py` from another folder, as a user would, and return what it said."""

    def run(*arguments: str, timeout: float = 120) -> Finished:
        command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
