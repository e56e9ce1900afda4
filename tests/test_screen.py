"""A screen that vanishes, fills up or is held ends no process and holds none up."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hunyuan_train.screen import Screen, open_log
from tests.conftest import REPOSITORY

# Says one line, waits for its stdin to end, says many more in every way there is, and tells a file.
SAYS_MUCH = """
import logging, os, sys
from pathlib import Path
from rich.console import Console
from hunyuan_train.screen import outlive_the_screen
outlive_the_screen(is_rank=True)
Console(stderr=True).print("first")
sys.stdin.read()
with Console(stderr=True).status("working"):
    for _ in range(30):
        Console(stderr=True).print("x" * 999)
        print("y" * 999, file=sys.stderr)
        logging.warning("z")
Path(sys.argv[1]).touch()
"""


class Said:
    """A process that says much on a screen."""

    def __init__(self, folder: Path, screen: int) -> None:
        self.end = folder / "end"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SAYS_MUCH, str(self.end)],
            stdin=subprocess.PIPE,
            stderr=screen,
            cwd=REPOSITORY,
        )

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def ends_well(self) -> bool:
        return self.process.wait(30) == 0 and self.end.exists()


def test_a_terminal_that_was_closed_ends_no_process(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    said = Said(tmp_path, theirs)
    os.close(theirs)
    assert b"first" in os.read(ours, 99)
    os.close(ours)
    said.go_on()
    assert said.ends_well()


def test_a_pipe_without_a_reader_ends_no_process(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    said = Said(tmp_path, theirs)
    os.close(theirs)
    assert os.read(ours, 99) == b"first\n"
    os.close(ours)
    said.go_on()
    assert said.ends_well()


def test_a_full_disk_ends_no_process(tmp_path: Path, make_disk: Callable[[float], Path]) -> None:
    file = os.open(make_disk(0.02) / "log.txt", os.O_WRONLY | os.O_CREAT)
    said = Said(tmp_path, file)
    said.go_on()
    assert said.ends_well()


def test_no_screen_at_all_ends_no_process(tmp_path: Path) -> None:
    command = 'exec "$@" 0</dev/null 1>&- 2>&-'
    words = ["sh", "-c", command, "sh", sys.executable, "-c", SAYS_MUCH, str(tmp_path / "end")]
    assert subprocess.run(words, cwd=REPOSITORY, timeout=30, check=False).returncode == 0
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_screen_that_is_held_holds_nobody_up_and_gets_all_later(kind: str) -> None:
    ours, theirs = os.pipe() if kind == "pipe" else pty.openpty()
    if kind == "terminal":
        os.write(ours, b"\x13")  # Ctrl-S
    screen = Screen(theirs)
    began = time.monotonic()
    for number in range(100):
        screen.write(b"%05d" % number + 4000 * b"x" + b"\n")
    assert time.monotonic() - began < 10
    if kind == "terminal":
        os.write(ours, b"\x11")  # Ctrl-Q
    text = b""
    while text.count(b"\n") < 100:
        text += os.read(ours, 2**16)
    assert [line[:5] for line in text.split(b"\n")[:100]] == [b"%05d" % one for one in range(100)]
    screen.drain(5)
    assert not screen.is_held


def test_a_forked_process_has_a_screen_of_its_own(tmp_path: Path) -> None:
    with open_log(tmp_path / "log.txt") as log:
        print("parent", file=log)
        if (child := os.fork()) == 0:
            print("child", file=log)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent again", file=log)
        assert (tmp_path / "log.txt").read_text() == "parent\nchild\nparent again\n"


def run_in_a_shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["train --help", "data --help", "--help"])
def test_a_reader_that_has_read_enough_is_no_error(command: str) -> None:
    ended = run_in_a_shell(f'"$1" -m hunyuan_train {command} | (head -c 1 >/dev/null; exec <&-)')
    assert ended.stderr == ""


ANSWERING = (
    "train --help",
    "plan --model a13b --gpus 8 --gpu h20",
    "data check data/tiny_eval.jsonl",
)


@pytest.mark.parametrize("command", [*ANSWERING, "--help", "--version"])
def test_an_answer_that_nobody_wants_is_no_error(command: str) -> None:
    ended = run_in_a_shell(f'"$1" -m hunyuan_train {command} <&- >&-')
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [*ANSWERING, "--help", "--version"])
@pytest.mark.parametrize(
    ("screen", "reason"),
    [(">/dev/full", "No space left on device"), ("1</dev/null", "Bad file descriptor")],
)
def test_an_answer_that_cannot_be_written_is_one_line(
    command: str, screen: str, reason: str
) -> None:
    ended = run_in_a_shell(f'"$1" -m hunyuan_train {command} {screen}')
    assert ended.returncode == 2
    assert f"error: standard output cannot be written ({reason})" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("seconds", [0.15, 0.5, 0.9, 1.4, 2.0])
def test_ctrl_c_during_the_start_says_nothing_of_python(seconds: float, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "--recipe", "tiny", "--dry_run"]
    process = psutil.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with suppress(psutil.NoSuchProcess):  # it is done
        while sum(process.cpu_times()[:2]) < seconds and process.poll() is None:
            time.sleep(0.01)  # by its own time: on a busy machine Python itself is long in starting
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert "numpy" not in said
