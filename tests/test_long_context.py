"""The benchmark of long rows runs, scaled down to a CPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.phases import ATTENTION, EXPERTS, LOSS, OPTIMIZER, ROUTER, SHARED
from hunyuan_train.launcher.machine import count_gpus

pytestmark = pytest.mark.skipif(count_gpus() > 0, reason="scaled down only where there is no GPU")
BENCHMARK = ["-m", "benchmarks.long_context"]


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_the_part_of_one_of_eight_gpus_is_measured(repository: Path) -> None:
    flags = ["--slice", "--small", "--layers", "2", "--tokens", "32"]
    done = run(repository, "-m", "torch.distributed.run", "--standalone", *BENCHMARK, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+?) \|", done.stdout, re.MULTILINE))
    assert all(float(rows[part]) > 0 for part in (ATTENTION, ROUTER, EXPERTS, SHARED, LOSS))
    assert float(rows[OPTIMIZER]) > 0
    assert 0.6 < float(rows["peak / planned"]) < 1.1  # of a process that is mostly libraries here
    assert "32 of 256 tokens, experts in 8 chunks" in done.stdout


@pytest.mark.slow
def test_sharing_rows_halves_the_memory_that_grows_with_them(repository: Path) -> None:
    done = run(repository, *BENCHMARK, "--lengths", "4096")
    assert done.returncode == 0, done.stderr[-3000:]
    shares = re.findall(r"MB \| ([\d.]+) \|$", done.stdout, re.MULTILINE)
    own, shared, chunked = (float(share) for share in shares)
    assert own == 1
    assert chunked < shared < 0.8


@pytest.mark.slow
def test_without_a_gpu_the_true_widths_are_refused(repository: Path) -> None:
    done = run(repository, "-m", "torch.distributed.run", "--standalone", *BENCHMARK, "--slice")
    assert done.returncode != 0
    assert "no GPU for the true widths; add --small" in done.stderr
