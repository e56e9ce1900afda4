"""The screen of a process: a terminal, a pipe or a file that may vanish, fill up or be held.

None of that is a reason to end a run. A terminal that was closed, a pipe whose reader has ended and
a full disk take what is written and lose it. One that is held (Ctrl-S, a pager) gets it later: a
thread writes, and whoever has something to say goes on after a moment.

Stdout is for answers. One that cannot be written is an error, but nobody waits for it where stdout
is closed.
"""

import atexit
import io
import os
import select
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN = 0
STDOUT = 1
STDERR = 2
HELD_SECONDS = 1.0  # after which a write that has not ended is left to the thread
MAX_WAITING = 10_000  # writes; what comes after them is lost
CLOSE_SECONDS = 5.0  # that a rank's end waits for a held screen: the others wait for the rank


class Screen(io.RawIOBase):
    """Writes to a descriptor, and neither fails nor waits for long."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # a child has neither thread nor its lock

    def _forget(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.changed = threading.Condition()
        self.is_held = False
        self.has_thread = False

    def writable(self) -> bool:
        """It is for that alone."""
        return True

    def fileno(self) -> int:
        """The descriptor, for what other processes are to write there."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal, and not one that was closed."""
        return os.isatty(self.descriptor)

    def write(self, text: "ReadableBuffer", /) -> int:
        """Take a text; it has been written by the end of the call, unless the screen is held."""
        data = bytes(text)
        with self.changed:
            if not self.has_thread:
                self.has_thread = True
                threading.Thread(target=self._write_all, daemon=True, name="screen").start()
            if len(self.waiting) < MAX_WAITING:
                self.waiting.append(data)
                self.changed.notify_all()
            if not self.is_held:
                self.is_held = not self._wait(HELD_SECONDS)
        return len(data)

    def drain(self, seconds: float | None) -> None:
        """Wait until all is written, or for so long; None waits as long as it takes."""
        with self.changed:
            self._wait(seconds)

    def _wait(self, seconds: float | None) -> bool:
        return self.changed.wait_for(lambda: not self.waiting, seconds)

    def _write_all(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                data = self.waiting[0]
            with suppress(OSError):
                write_whole(self.descriptor, data)
            with self.changed:
                self.waiting.popleft()
                if not self.waiting:
                    self.is_held = False
                    self.changed.notify_all()


class UnwrittenError(Exception):
    """Stdout did not take an answer: its disk is full, or it is open for reading alone."""


class Answers(io.FileIO):
    """Stdout, whose errors are apart from those of all other files."""

    def write(self, text: "ReadableBuffer", /) -> int:
        """Write what is taken at once.

        Raises:
            BrokenPipeError: the reader has ended.
            UnwrittenError: any other reason.
        """
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UnwrittenError(f"standard output cannot be written ({reason})") from error


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all bytes, also where another process has made the descriptor non-blocking."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def outlive_the_screen(*, is_rank: bool) -> None:
    """Let what this process says on stderr from now on never end it; call it once, at its start.

    What it answers on stdout ends it with `UnwrittenError` or `BrokenPipeError`.

    Args:
        is_rank: others wait for its end, which then does not wait for a held screen.
    """
    _fill_descriptors()
    if sys.stdin is None:
        sys.stdin = os.fdopen(STDIN)
    if sys.stderr is sys.__stderr__:  # not where a test has put something else there
        sys.stderr = _write_to(STDERR, seconds=CLOSE_SECONDS if is_rank else None)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _answer_on(sys.__stdout__)


def drop_answers() -> None:
    """Lose what stdout has not taken, so that the end of the process does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)


def open_log(path: Path) -> TextIO:
    """Open a file for lines that nobody waits for: a full disk loses them, and a dead one waits."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    return _write_to(descriptor, seconds=CLOSE_SECONDS)


def _write_to(descriptor: int, *, seconds: float | None) -> TextIO:
    screen = Screen(descriptor)
    atexit.register(screen.drain, seconds)
    return io.TextIOWrapper(
        screen,  # type: ignore[type-var]  # typeshed knows no raw file here, which `-u` uses, too
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _answer_on(stdout: TextIO | None) -> TextIO:
    """Write as Python's own stdout does; without one, to what `_fill_descriptors` put there."""
    is_prompt = isinstance(stdout, io.TextIOWrapper) and (
        stdout.line_buffering or stdout.write_through  # a terminal, or PYTHONUNBUFFERED
    )
    return io.TextIOWrapper(
        io.BufferedWriter(Answers(STDOUT, "w", closefd=False)),
        encoding=stdout.encoding if stdout else "utf-8",
        errors=stdout.errors if stdout else "backslashreplace",
        line_buffering=is_prompt,
    )


def _fill_descriptors() -> None:
    """Give 0, 1 and 2 to something, or the next file would get them, and what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
