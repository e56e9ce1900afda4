"""Each test supervises from a process of its own: it kills everything below it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPERVISE = """
import os, sys
from hunyuan_train.launcher.host import supervise
supervise.GRACE_SECONDS = 0.5
sys.exit(supervise.run_supervised([sys.executable, "-c", sys.argv[1]], os.environ))
"""
# Leaves a process in a session of its own behind, as torchrun's ranks are, and names it.
SPAWN_ORPHAN = """
import subprocess, sys
orphan = subprocess.Popen(["sleep", "100"], start_new_session=True)
print(orphan.pid, flush=True)
"""


def supervise(repository: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, code],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def has_ended(process_id: int, timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_code_is_that_of_the_command(repository, code, exit_code):
    assert supervise(repository, code).wait(timeout=30) == exit_code


def test_no_process_survives_the_command(repository):
    launcher = supervise(repository, SPAWN_ORPHAN)
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    assert has_ended(int(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_nothing_survives(repository, number):
    wait = SPAWN_ORPHAN + (
        "import signal, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('told', flush=True), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )
    launcher = supervise(repository, wait)
    orphan = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "ready\n"
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=30)
    assert out == "told\n"
    assert err == ""
    assert launcher.returncode == 128 + number
    assert has_ended(orphan)


def test_what_does_not_listen_is_killed_after_the_grace_time(repository):
    deaf = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(100)\n"
    )
    launcher = supervise(repository, deaf)
    process_id = int(launcher.stdout.readline())
    launcher.terminate()
    assert launcher.wait(timeout=30) == 128 + signal.SIGTERM
    assert has_ended(process_id)


def test_the_command_ends_when_the_launcher_is_killed(repository):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    launcher = supervise(repository, code)
    process_id = int(launcher.stdout.readline())
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert has_ended(process_id)
