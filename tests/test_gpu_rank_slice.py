"""The benchmark of one GPU of eight runs, scaled down to a CPU, and accounts for its time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.phases import ATTENTION, DISPATCH, EXPERTS, LOSS, OPTIMIZER, ROUTER, SHARED
from hunyuan_train.launcher.machine import count_gpus

pytestmark = pytest.mark.skipif(count_gpus() > 0, reason="scaled down only where there is no GPU")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
BENCHMARK = ["-m", "benchmarks.gpu_rank_slice"]


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_scaled_down_it_says_where_time_and_memory_went(repository: Path) -> None:
    flags = ["--small", "--layers", "2", "--tokens", "128", "--steps", "2"]
    done = run(repository, *TORCHRUN, *BENCHMARK, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+?) \|", done.stdout, re.MULTILINE))
    parts = (ATTENTION, ROUTER, DISPATCH, EXPERTS, SHARED, LOSS, OPTIMIZER)
    assert all(float(rows[part]) > 0 for part in parts)
    assert 0.6 < float(rows["peak / planned"]) < 1.1  # of a process that is mostly libraries here
    assert int(rows["tokens/s"].replace(",", "")) > 0


@pytest.mark.slow
def test_without_a_gpu_the_true_widths_are_refused(repository: Path) -> None:
    done = run(repository, *TORCHRUN, *BENCHMARK)
    assert done.returncode != 0
    assert "no GPU for the true widths; add --small" in done.stderr


@pytest.mark.slow
def test_it_says_how_it_is_started(repository: Path) -> None:
    done = run(repository, sys.executable, *BENCHMARK, "--small")
    assert done.returncode == 2
    assert "start it with `torchrun --standalone -m benchmarks.gpu_rank_slice`" in done.stderr
