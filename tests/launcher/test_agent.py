import os
import subprocess
import sys

import pytest

from hunyuan_train.launcher.launch import free_port
from hunyuan_train.launcher.worker import FAILURES_VARIABLE

REPORT_FROM_RANK_1 = """
import os, sys, time
from hunyuan_train.launcher.worker import report_crash, report_failure
sys.excepthook = report_crash
if os.environ["RANK"] == "0":
    time.sleep(100)
{how}
"""


def run_agent(repository, tmp_path, how):
    script = tmp_path / "rank.py"
    script.write_text(REPORT_FROM_RANK_1.format(how=how))
    return subprocess.run(
        [
            *(sys.executable, "-m", "hunyuan_train.launcher.agent", "--nproc_per_node=2"),
            *("--nnodes=1", "--node_rank=0", "--max_restarts=0", "--master_addr=127.0.0.1"),
            *(f"--master_port={free_port()}", str(script)),
        ],
        env={
            **os.environ,
            FAILURES_VARIABLE: str(tmp_path),
            "PYTHONPATH": str(repository),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("how", "exit_code", "words"),
    [
        (
            "report_failure('error: no data; bring some'); sys.exit(2)",
            2,
            "error: no data; bring some",
        ),
        ("raise ValueError('a bug of ours')", 1, "ValueError: a bug of ours"),
        ("os.kill(os.getpid(), 9)", 137, "rank 1 was killed (SIGKILL)"),
    ],
)
def test_the_failing_rank_has_the_last_word_and_the_exit_code(
    repository, tmp_path, how, exit_code, words
):
    result = run_agent(repository, tmp_path, how)
    assert result.returncode == exit_code
    assert words in result.stderr.splitlines()[-1]
    assert "ChildFailedError" not in result.stderr
