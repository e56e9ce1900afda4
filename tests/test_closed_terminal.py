"""A terminal that goes away is a reason to save, and none to lose anything."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.folder import list_checkpoints, read_manifest
from hunyuan_train.checkpoint.verify import verify_checkpoint
from tests.conftest import REPOSITORY
from tests.test_stopping import SETTINGS, last_step, wait_for_step

DEADLINE_SECONDS = 120


def train_command(output_dir: Path) -> list[str]:
    script = str(REPOSITORY / "train.py")
    return [sys.executable, script, *SETTINGS, "--output_dir", str(output_dir)]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_processes(output_dir: Path) -> list[str]:
    """The command lines that name the run."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if str(output_dir).encode() in words:
            lines.append(b" ".join(words).decode())
    return lines


def check_saved(output_dir: Path) -> None:
    """The run ended after its step, and that step is on disk."""
    wait_until(lambda: not find_processes(output_dir))
    [checkpoint] = list_checkpoints(output_dir)
    assert read_manifest(checkpoint)["state"]["step"] == last_step(output_dir) >= 2
    verify_checkpoint(checkpoint)


def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, train_command(output_dir))
    os.set_blocking(terminal, False)
    wait_for_step(output_dir, 2)
    os.close(terminal)
    os.waitpid(child, 0)
    check_saved(output_dir)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    """The command of a tmux server of its own."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is missing: apt-get install tmux")
    command = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
    yield command
    subprocess.run([*command, "kill-server"], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill-server", "kill-session", "kill -9 of the server"])
def test_a_killed_tmux_saves(tmp_path: Path, tmux: list[str], way: str) -> None:
    output_dir = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
    # An interactive shell passes the terminal's end on to its job, beside the kernel.
    start = [*tmux, "new-session", "-d", "-x", "80", "-y", "24", "bash --norc -i"]
    subprocess.run(start, cwd=tmp_path, env=environment, check=True)
    line = shlex.join(train_command(output_dir))
    subprocess.run([*tmux, "send-keys", line, "Enter"], check=True)
    wait_for_step(output_dir, 2)
    if way.startswith("kill -9"):
        asked = [*tmux, "display-message", "-p", "#{pid}"]
        server = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        os.kill(int(server), 9)
    else:
        subprocess.run([*tmux, way], check=True)
    check_saved(output_dir)


@pytest.mark.slow
def test_a_dropped_ssh_saves(tmp_path: Path, loopback_ssh: list[str]) -> None:
    output_dir = tmp_path / "run"
    variables = [f"{name}={os.environ[name]}" for name in ("PATH", "OMP_NUM_THREADS")]
    line = f"cd {tmp_path} && env {shlex.join([*variables, *train_command(output_dir)])}"
    with (tmp_path / "said").open("wb") as said:
        client = subprocess.Popen([*loopback_ssh, "-tt", line], stdin=subprocess.PIPE, stdout=said)
    wait_for_step(output_dir, 2)
    client.kill()
    client.wait()
    check_saved(output_dir)


@pytest.mark.slow
def test_a_reader_that_ends_leaves_the_run_alone(tmp_path: Path) -> None:
    """As `bash train.sh 2>&1 | head` does."""
    output_dir = tmp_path / "run"
    line = f"{shlex.join(train_command(output_dir))} --max_steps 3 2>&1 | head -n 1"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    check_saved(output_dir)
    assert last_step(output_dir) == 3
