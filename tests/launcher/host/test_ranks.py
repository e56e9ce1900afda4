import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from hunyuan_train.launcher.exit_codes import RESUME
from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.probe import free_port
from hunyuan_train.launcher.host.ranks import (
    AGENT_STORE,
    RANK_MARK,
    SHUTDOWN_SECONDS,
    find_cause,
)
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE
from tests.conftest import REPOSITORY

REPORT_FROM_RANK_1 = """
import os, sys, time
from hunyuan_train.launcher.rank.worker import report_crash, report_failure
sys.excepthook = report_crash
if os.environ["RANK"] == "0":
    time.sleep(100)
{how}
"""


MODULE = "hunyuan_train.launcher.host.ranks"


def command_for(num_ranks, *flags):
    places = (f"--ranks_here={num_ranks}", "--first_rank=0", f"--num_ranks={num_ranks}")
    meeting = ("--master_addr=127.0.0.1", f"--master_port={free_port()}")
    return [sys.executable, "-m", MODULE, *places, *meeting, *flags, "--"]


def run_ranks(tmp_path, script, *flags, num_ranks=2):
    path = tmp_path / "rank.py"
    path.write_text(script)
    return subprocess.run(
        [*command_for(num_ranks, *flags), str(path)],
        env={
            **os.environ,
            FOLDER_VARIABLE: str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
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
def test_the_failing_rank_has_the_last_word_and_the_exit_code(tmp_path, how, exit_code, words):
    result = run_ranks(tmp_path, REPORT_FROM_RANK_1.format(how=how))
    assert result.returncode == exit_code
    cause = json.loads((tmp_path / CAUSE).read_text())
    assert cause["rank"] == 1
    assert cause["exit_code"] == exit_code
    assert words in cause["words"].splitlines()[-1]
    assert abs(cause["time"] - time.time()) < 60


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


def test_a_rank_that_does_not_heed_the_end_is_killed_and_is_not_the_cause(tmp_path):
    script = """
import os, signal, sys, time
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("deaf", "w").close()
    time.sleep(100)
while not os.path.exists("deaf"):
    time.sleep(0.05)
sys.exit(3)
"""
    script = script.replace('"deaf"', repr(str(tmp_path / "deaf")))
    began = time.monotonic()
    assert run_ranks(tmp_path, script).returncode == 3
    assert time.monotonic() - began < 4 * SHUTDOWN_SECONDS
    assert json.loads((tmp_path / CAUSE).read_text())["rank"] == 1


def test_ranks_find_their_place_as_under_torchrun_and_lines_are_marked(tmp_path):
    script = """
import os, sys
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR TORCHELASTIC_USE_AGENT_STORE"
print([os.environ.get(name) for name in names.split()])
sys.stderr.write("no end of line")
"""
    place = ["--ranks_here=2", "--first_rank=2", "--num_ranks=4", "--master_addr=a", "--is_marked"]
    path = tmp_path / "rank.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *place, "--master_port=1", "--", str(path), "--flag"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), AGENT_STORE: "True"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    marks = [f"{RANK_MARK}{rank}{RANK_MARK}" for rank in (2, 3)]
    for rank, mark in enumerate(marks):
        assert f"{mark}['{rank + 2}', '{rank}', '4', '2', 'a', None]\n" in done.stdout
        assert f"{mark}no end of line" in done.stdout


@pytest.mark.parametrize(("heeds", "exit_code"), [(True, RESUME), (False, 128 + signal.SIGTERM)])
def test_a_signal_reaches_the_ranks_which_may_save(tmp_path, heeds, exit_code):
    script = f"""
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep(1.0)
    sys.exit({RESUME})
if {heeds}:
    signal.signal(signal.SIGTERM, stop)
Path({str(tmp_path)!r}, "ready").touch()
time.sleep(100)
"""
    path = tmp_path / "rank.py"
    path.write_text(script)
    process = subprocess.Popen([*command_for(1, "--stop_seconds=60"), str(path)], cwd=REPOSITORY)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == exit_code


# As a rank: who listens on the port at which all meet?
SAYS_WHO_LISTENS = """
import os
from pathlib import Path
from hunyuan_train.parallel.engine import start_process_group
start_process_group(1, os.environ)
port = f"{int(os.environ['MASTER_PORT']):04X}"
lines = [line.split() for name in ("tcp", "tcp6")
         for line in Path("/proc/net", name).read_text().splitlines()[1:]]
print([one[1].partition(":")[0] for one in lines if one[3] == "0A" and one[1].endswith(port)])
"""


def test_the_ranks_of_one_machine_meet_on_loopback_alone(tmp_path):
    ended = run_ranks(tmp_path, SAYS_WHO_LISTENS, num_ranks=1)
    assert ended.stdout.splitlines()[-1:] == ["['0100007F']"], ended.stderr


def test_torch_still_listens_everywhere_by_itself():
    """Once it does not, `parallel/meeting.py` can go."""
    store = TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    lines = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    port = f"{store.port:04X}"
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert f"{32 * '0'}:{port}" in listening
