"""Manners on a terminal: whole lines, also at Ctrl-C, and no colours for those who want none."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from hunyuan_train.launcher.exit_codes import INTERRUPTED
from tests.conftest import REPOSITORY
from tests.test_stopping import SETTINGS

pyte = pytest.importorskip("pyte")

WIDTH, HEIGHT = 500, 60  # no line of ours is longer
PATIENCE_SECONDS = 600
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)[;m]")
CTRL_C = b"\x03"


def on_terminal(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    interrupt_when: Callable[[], bool] = lambda: False,
) -> tuple[int, bytes]:
    """Run train.py on a terminal of its own, with Ctrl-C pressed there once something is so."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        command = [sys.executable, str(REPOSITORY / "train.py"), *words]
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm-256color", **environment})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    said, is_interrupted, deadline = b"", False, time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 2**16)
            except OSError:  # nobody holds its other side any more
                break
        if not is_interrupted and interrupt_when():
            is_interrupted = True
            os.write(terminal, CTRL_C)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def read_screen(said: bytes) -> list[str]:
    """The lines that stand there in the end, those that were scrolled away too."""
    screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=1000)
    pyte.ByteStream(screen).feed(said)
    above = ["".join(line[column].data for column in range(WIDTH)) for line in screen.history.top]
    return [line.rstrip() for line in (*above, *screen.display) if line.strip()]


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colours", "NO_COLOR"])
def test_colours_are_for_those_who_want_them(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["--recipe", "tiny", "--max_steps", "3", "--output_dir", "run", "--dry_run"]
    code, said = on_terminal(words, tmp_path, environment)
    assert code == 0, said
    lines = read_screen(said)
    assert any(line.startswith("warning: ") for line in lines)
    assert bool(COLOUR.search(said)) == (not environment)


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_in_one_colour(tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"

    def is_training() -> bool:
        return metrics.exists() and '{"step": 2, ' in metrics.read_text()

    words = [*SETTINGS, "--output_dir", str(run)]
    code, said = on_terminal(words, tmp_path, {"NO_COLOR": "1"}, interrupt_when=is_training)
    lines = read_screen(said)
    assert code == INTERRUPTED, lines
    assert not COLOUR.search(said)
    whole = (
        r"step 1/125  loss \S+  lr \S+  norm \S+  \S+ tok/s  \S+ GiB  skew \S+",
        r"stopping after this step, to save; once more stops at once",
        r"asked to stop: finishing the step, then saving",
        r"saved \S+/checkpoints/step-\d+ \(\S+ s, beside training\)",
        r"stopped after step \d+ of 125",
        r"stopped; to go on: .* --resume_from_checkpoint auto",
    )
    for pattern in whole:
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, lines[-14:])
    assert not any("Traceback" in line for line in lines)
