import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.probe import free_port
from hunyuan_train.launcher.host.torchrun_agent import find_cause
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE

REPORT_FROM_RANK_1 = """
import os, sys, time
from hunyuan_train.launcher.rank.worker import report_crash, report_failure
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
            *(
                sys.executable,
                "-m",
                "hunyuan_train.launcher.host.torchrun_agent",
                "--nproc_per_node=2",
            ),
            *("--nnodes=1", "--node_rank=0", "--max_restarts=0", "--master_addr=127.0.0.1"),
            *(f"--master_port={free_port()}", str(script)),
        ],
        env={
            **os.environ,
            FOLDER_VARIABLE: str(tmp_path),
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
    cause = json.loads((tmp_path / CAUSE).read_text())
    assert cause["rank"] == 1
    assert cause["exit_code"] == exit_code
    assert words in cause["words"].splitlines()[-1]
    assert abs(cause["time"] - time.time()) < 60
    assert "ChildFailedError" not in result.stderr


def test_the_first_words_are_the_cause(tmp_path):
    for rank, seconds in ((0, 20), (2, 5), (3, 10), (1, 30)):
        file = tmp_path / f"{rank}.failure"
        file.write_text(f"rank {rank}")
        os.utime(file, (seconds, seconds))
    assert find_cause({0: 1, 1: 1, 3: 2}, tmp_path) == (3, "rank 3")


def test_a_killed_rank_is_the_cause_whatever_the_others_say(tmp_path):
    (tmp_path / "0.failure").write_text("connection closed by peer")
    rank, words = find_cause({0: 1, 1: -9}, tmp_path)
    assert rank == 1
    assert words.startswith("error: rank 1 was killed (SIGKILL)")
    assert find_cause({0: 1, 1: -15}, tmp_path) == (0, "connection closed by peer")
    assert find_cause({1: -11}, tmp_path)[1] == "error: rank 1 was ended by SIGSEGV"
    assert find_cause({1: 7}, tmp_path)[1] == "error: rank 1 ended with exit code 7"


# As a rank: who listens on the port at which all meet?
SAYS_WHO_LISTENS = """
import os
from pathlib import Path
port = f"{int(os.environ['MASTER_PORT']):04X}"
lines = [line.split() for name in ("tcp", "tcp6")
         for line in Path("/proc/net", name).read_text().splitlines()[1:]]
print([one[1].partition(":")[0] for one in lines if one[3] == "0A" and one[1].endswith(port)])
"""


def test_the_ranks_of_one_machine_meet_on_loopback_alone(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(SAYS_WHO_LISTENS)
    place = ("--nnodes=1", "--node_rank=0", "--nproc_per_node=1", "--master_addr=127.0.0.1")
    command = [sys.executable, "-m", "hunyuan_train.launcher.host.torchrun_agent", *place]
    ended = subprocess.run(
        [*command, f"--master_port={free_port()}", f"--log_dir={tmp_path / 'log'}", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "['0100007F']\n", ended.stderr


def test_torch_still_listens_everywhere_by_itself():
    """Once it does not, `listening_where_asked` can go."""
    store = TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    lines = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    port = f"{store.port:04X}"
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert f"{32 * '0'}:{port}" in listening
