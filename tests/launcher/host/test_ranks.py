import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore, init_process_group

from hunyuan_train.config.launch_schema import LISTENER
from hunyuan_train.launcher.exit_codes import RESUME
from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.probe import free_port
from hunyuan_train.launcher.host.ranks import (
    MAX_LINE_BYTES,
    RANK_MARK,
    SHUTDOWN_SECONDS,
    find_cause,
)
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE
from hunyuan_train.parallel import meeting
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
    place = ("--master_addr=127.0.0.1", "--master_port=0")
    return [sys.executable, "-m", MODULE, *places, *place, *flags, "--"]


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
        ("os.kill(os.getpid(), 15)", 143, "rank 1 was ended by SIGTERM"),
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
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
print([os.environ.get(name) for name in names.split()])
sys.stderr.write("no end of line")
"""
    left = ("TORCHELASTIC_", LISTENER)
    place = ["--ranks_here=2", "--first_rank=2", "--num_ranks=4", "--master_addr=a", "--is_marked"]
    path = tmp_path / "rank.py"
    path.write_text(f"{script}sys.exit(any(n.startswith({left!r}) for n in os.environ))\n")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "7"}
    around_us = {"RANK": "9", "MASTER_PORT": "9", LISTENER: "9", "TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *place, "--master_port=1", "--", str(path), "--flag"],
        env={**environment, **around_us, "TORCHELASTIC_USE_AGENT_STORE": "True"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    marks = [f"{RANK_MARK}{rank}{RANK_MARK}" for rank in (2, 3)]
    for rank, mark in enumerate(marks):
        assert f"{mark}['{rank + 2}', '{rank}', '4', '2', 'a', '1', '7']\n" in done.stdout
        assert f"{mark}no end of line\n" in done.stdout


def test_nobody_saves_once_the_agent_was_killed(tmp_path):
    script = f"""
import os, signal, time
from pathlib import Path
from hunyuan_train.launcher.rank.heartbeat import announce_rank
announce_rank()
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), Path({str(tmp_path)!r}, "saved").touch()))
Path({str(tmp_path)!r}, "ready").touch()
time.sleep(100)
"""
    path = tmp_path / "rank.py"
    path.write_text(script)
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    agent = subprocess.Popen(
        [*parent, *command_for(1, "--stop_seconds=60"), str(path)],
        env={**os.environ, FOLDER_VARIABLE: str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    rank = int((tmp_path / "0.pid").read_text())
    agent.kill()
    agent.wait()
    ends_by = time.monotonic() + 1.5
    while is_alive(rank) and time.monotonic() < ends_by:
        time.sleep(0.05)
    assert not is_alive(rank)
    assert not (tmp_path / "saved").exists()


def is_alive(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_whatever_ranks_say_is_passed_on_line_by_line_and_none_of_it_is_kept_for_long(tmp_path):
    script = f"""
import os, sys
rank = os.environ["RANK"]
screen = sys.stdout.buffer
for number in range(40):
    screen.write(rank.encode() * 70_000 + b"\\n")  # more than a pipe takes at once
screen.write(b"bar 1\\rbar 2\\r" + bytes(range(256)).replace(b"\\n", b"") + b"\\n")
screen.write(rank.encode() * {MAX_LINE_BYTES + 5} + b"\\n")
screen.flush()
os.close(1)
os.close(2)
"""
    path = tmp_path / "rank.py"
    path.write_text(script)
    done = subprocess.run(
        [*command_for(3, "--is_marked"), str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split(b"\n")
    assert lines.pop() == b""
    for rank in b"012":
        mark = RANK_MARK.encode() + bytes([rank]) + RANK_MARK.encode()
        said = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
        assert said[:40] == [bytes([rank]) * 70_000] * 40
        assert said[40] == b"bar 1\rbar 2\r" + bytes(range(256)).replace(b"\n", b"")
        assert b"".join(said[41:]) == bytes([rank]) * (MAX_LINE_BYTES + 5)
    assert len(lines) == 3 * 43


@pytest.mark.parametrize("how", ["os.abort()", f"sys.exit({RESUME})"])
def test_what_a_rank_does_that_is_ended_for_another_hides_no_cause(tmp_path, how):
    script = f"""
import os, resource, signal, sys, time
from pathlib import Path
ready = Path({str(tmp_path / "ready")!r})
if os.environ["RANK"] == "0":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, lambda *_: {how})
    ready.touch()
    time.sleep(100)
while not ready.exists():
    time.sleep(0.05)
sys.exit(3)
"""
    assert run_ranks(tmp_path, script).returncode == 3
    cause = json.loads((tmp_path / CAUSE).read_text())
    assert (cause["rank"], cause["words"]) == (1, "error: rank 1 ended with exit code 3")


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


# As a rank: who listens on the port at which all meet, before and after they have met?
SAYS_WHO_LISTENS = """
import os
from pathlib import Path
def show():
    port = f"{int(os.environ['MASTER_PORT']):04X}"
    lines = [line.split() for name in ("tcp", "tcp6")
             for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    print([one[1].partition(":")[0] for one in lines if one[3] == "0A" and one[1].endswith(port)])
show()
from hunyuan_train.parallel.engine import start_process_group
start_process_group(1, os.environ)
show()
"""


def test_the_ranks_of_one_machine_meet_on_loopback_alone_at_a_port_that_nobody_else_gets(tmp_path):
    ended = run_ranks(tmp_path, SAYS_WHO_LISTENS, num_ranks=1)
    said = [line for line in ended.stdout.splitlines() if line.startswith("[")]  # not DeepSpeed's
    assert said == ["['0100007F']"] * 2, ended.stderr


def test_the_held_port_goes_with_rank_0_alone():
    held = socket.create_server((meeting.LOOPBACK, 0))
    held.set_inheritable(True)  # as `pass_fds` gives it
    assert meeting.listen(0, {LISTENER: str(held.fileno())}) == held.fileno()
    assert not held.get_inheritable()


def meet(place):
    with meeting.explaining_a_taken_port(place):
        if meeting.meets_on_loopback(place):
            meeting.meet_on_loopback("gloo", timedelta(seconds=5), place)
        init_process_group("gloo")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])  # our own store, and torch's
def test_a_port_that_is_taken_is_named_with_what_to_do(monkeypatch, address):
    taken = socket.create_server(("", 0))
    port = str(taken.getsockname()[1])
    place = {"MASTER_ADDR": address, "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((OSError, RuntimeError)) as caught:
        meet(place)
    [note] = caught.value.__notes__
    assert note.startswith(f"error: port {port} of this host")
    assert "--master_port" in note


def test_torch_still_listens_everywhere_by_itself():
    """Once it does not, `parallel/meeting.py` can go."""
    store = TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    lines = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    port = f"{store.port:04X}"
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert f"{32 * '0'}:{port}" in listening
