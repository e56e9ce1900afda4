"""The user's own commands beside a run: a copy of each checkpoint, and the way back of copies.

They are lines for `sh`. The folder is `$1` in them; where they do not name it, it comes last.
"""

import logging
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError

logger = logging.getLogger(__name__)

NAMES_FOLDER = re.compile(r"\$(\{?1\b|[@*])")
RETRY_AFTER_SECONDS = (5.0, 30.0, 120.0, 300.0)
FETCH_AGAIN_AFTER_SECONDS = (5.0, 20.0)
NUM_LINES_SHOWN = 5
NUM_BYTES_KEPT = 8192  # of what a command prints
LAST_WORDS_SECONDS = 1.0  # for what a command printed at its very end to be read
# For a checkpoint, all tries together: a terabyte at 50 MB/s. A copy that hangs would hold the
# hosts of a complete run, and keep checkpoints from being deleted.
MOST_HOURS = 6.0
# What would make a command that starts this package, or torch, believe that it is a rank.
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def words_of(command: str, folder: Path) -> list[str]:
    """The words that run a command for a folder."""
    line = command if NAMES_FOLDER.search(command) else f'{command} "$1"'
    without = [word for name in OF_RANKS for word in ("-u", name)]
    return ["env", *without, "sh", "-c", line, "sh", str(folder.absolute())]


class LastWords:
    """The end of what a command and its children print, read for as long as any of them lives."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.tail = b""
        # A daemon: what a command has left running may print for ever.
        self.reader = threading.Thread(target=self._read, daemon=True, name="last_words")
        self.reader.start()

    def lines(self) -> list[str]:
        """The last lines, once the command itself has ended."""
        self.reader.join(LAST_WORDS_SECONDS)
        return self.tail.decode(errors="replace").splitlines()[-NUM_LINES_SHOWN:]

    def _read(self) -> None:
        while chunk := os.read(self.pipe, NUM_BYTES_KEPT):
            self.tail = (self.tail + chunk)[-NUM_BYTES_KEPT:]
        os.close(self.pipe)


def start_command(command: str, folder: Path) -> tuple[subprocess.Popen[bytes], LastWords]:
    """Start a command for a folder, and take what it prints.

    Raises:
        OSError: it cannot be started.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            words_of(command, folder),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
        )
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, LastWords(reading)


def run_user_command(
    command: str, folder: Path, *, most_seconds: float | None = None
) -> str | None:
    """Run a command to its own end; what it leaves running is not waited for.

    Args:
        command: a line for sh.
        folder: its argument.
        most_seconds: after which it is killed, with its children; None: no limit.

    Returns:
        None, or how it failed, with the last lines that it printed.
    """
    try:
        process, words = start_command(command, folder)
    except OSError as error:  # no memory or no processes left
        return f"it could not be started: {error.strerror}"
    try:
        exit_code = process.wait(most_seconds)
    except subprocess.TimeoutExpired:
        kill_with_children(process)
        end = "it was killed, because it had not ended in its time"
    else:
        end = f"exit code {exit_code}"
        if exit_code == 0:
            return None
    return " | ".join([end, *(line.rstrip() for line in words.lines())])


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it has started."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # first, so that it starts nothing more
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


class CheckpointCommands:
    """Runs a command for each new checkpoint, one after the other, beside training."""

    def __init__(
        self,
        command: str,
        retry_after_seconds: Sequence[float] = RETRY_AFTER_SECONDS,
        *,
        most_hours: float = MOST_HOURS,
    ) -> None:
        self.command = command
        self.most_hours = most_hours  # for all tries of a checkpoint
        self.began = time.monotonic()  # of the first try for the first of the folders
        self.retry_after_seconds = retry_after_seconds
        self.folders: deque[Path] = deque()  # the first is being seen to
        self.changed = threading.Condition()
        self.fault: str | None = None  # of the newest checkpoint that has been seen to
        # A daemon: a run that fails elsewhere does not wait for it.
        threading.Thread(target=self._run_all, daemon=True, name="after_checkpoint").start()

    def start(self, folder: Path) -> None:
        """Have the command run for a checkpoint that has just got its name."""
        with self.changed:
            self.folders.append(folder)
            self.changed.notify_all()

    def in_use(self) -> list[Path]:
        """The checkpoints that it runs for, or will: they must not be deleted."""
        with self.changed:
            return list(self.folders)

    def describe(self) -> str | None:
        """What is waited for, since when and how long yet; None: nothing."""
        folders = self.in_use()
        if not folders:
            return None
        more = f", and for {len(folders) - 1} more after it" if len(folders) > 1 else ""
        minutes = (time.monotonic() - self.began) / 60
        return (
            f"after_checkpoint has been at {folders[0]} for {minutes:.0f} minutes{more}. After "
            f"{self.most_hours:g} hours it counts as failed"
        )

    def _run_all(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.folders)
                folder = self.folders[0]
            self.fault = self._run(folder)
            with self.changed:
                self.folders.popleft()

    def _run(self, folder: Path) -> str | None:
        """Run it for one checkpoint, trying again until a newer one is there."""
        self.began = began = time.monotonic()
        fault = self._try(folder)
        for seconds in self.retry_after_seconds:
            if fault is None or len(self.in_use()) > 1 or self._seconds_left() <= seconds:
                break
            logger.warning(
                "after_checkpoint failed for %s: %s. Again in %g s", folder, fault, seconds
            )
            self._wait_for_newer(seconds)
            fault = self._try(folder)
        if fault:
            logger.warning("after_checkpoint FAILED for %s: %s", folder, fault)
        else:
            seconds = time.monotonic() - began
            logger.info("after_checkpoint is done for %s (%.1f s)", folder.name, seconds)
        return fault

    def _try(self, folder: Path) -> str | None:
        return run_user_command(self.command, folder, most_seconds=self._seconds_left())

    def _seconds_left(self) -> float:
        """Of the time that all tries for the present checkpoint have together."""
        return max(0.0, self.began + 3600 * self.most_hours - time.monotonic())

    def _wait_for_newer(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: len(self.folders) > 1, seconds)


def fetch_checkpoints(config: RunConfig) -> None:
    """Run before_resume where a run is to be resumed, before anything looks for checkpoints.

    Raises:
        ConfigError: it failed, to the last try: a run that starts afresh could cost much.
    """
    command, output_dir = config.checkpoints.before_resume, Path(config.train.output_dir)
    if command is None or config.checkpoints.resume_from_checkpoint is None:
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    fault = run_user_command(command, output_dir)
    for seconds in FETCH_AGAIN_AFTER_SECONDS:
        if fault is None:
            return
        logger.warning("before_resume failed: %s. Again in %g s", fault, seconds)
        time.sleep(seconds)
        fault = run_user_command(command, output_dir)
    if fault:
        raise ConfigError(
            f"before_resume is `{command}`, and it failed for {output_dir}: {fault}; it must "
            "succeed where there is nothing to bring, too"
        )
