"""The user's own commands beside a run: a copy of each checkpoint, and the way back of copies.

They are lines for `sh`. The folder is `$1` in them; where they do not name it, it comes last.
"""

import logging
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError

logger = logging.getLogger(__name__)

NAMES_FOLDER = re.compile(r"\$(\{?1\b|[@*])")
RETRY_AFTER_SECONDS = (5.0, 30.0, 120.0, 300.0)
FETCH_AGAIN_AFTER_SECONDS = (5.0, 20.0)
NUM_LINES_SHOWN = 5
# What would make a command that starts this package, or torch, believe that it is a rank.
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def words_of(command: str, folder: Path) -> list[str]:
    """The words that run a command for a folder."""
    line = command if NAMES_FOLDER.search(command) else f'{command} "$1"'
    without = [word for name in OF_RANKS for word in ("-u", name)]
    return ["env", *without, "sh", "-c", line, "sh", str(folder.absolute())]


def run_user_command(command: str, folder: Path) -> str | None:
    """Run a command to its end.

    Returns:
        None, or how it failed, with the last lines that it printed.
    """
    lines: deque[str] = deque(maxlen=NUM_LINES_SHOWN)
    try:
        process = subprocess.Popen(
            words_of(command, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:  # no memory or no processes left
        return f"it could not be started: {error.strerror}"
    with process:
        assert process.stdout
        lines.extend(process.stdout)
    if process.returncode == 0:
        return None
    return " | ".join([f"exit code {process.returncode}", *(line.rstrip() for line in lines)])


class CheckpointCommands:
    """Runs a command for each new checkpoint, one after the other, beside training."""

    def __init__(
        self, command: str, retry_after_seconds: Sequence[float] = RETRY_AFTER_SECONDS
    ) -> None:
        self.command = command
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
        began = time.monotonic()
        fault = run_user_command(self.command, folder)
        for seconds in self.retry_after_seconds:
            if fault is None or len(self.in_use()) > 1:
                break
            logger.warning(
                "after_checkpoint failed for %s: %s. Again in %g s", folder, fault, seconds
            )
            self._wait_for_newer(seconds)
            fault = run_user_command(self.command, folder)
        if fault:
            logger.warning("after_checkpoint FAILED for %s: %s", folder, fault)
        else:
            seconds = time.monotonic() - began
            logger.info("after_checkpoint is done for %s (%.1f s)", folder.name, seconds)
        return fault

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
