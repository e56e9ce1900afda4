"""The runs that a live page is about: found, and read on in the background while somebody looks."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hunyuan_train.config import run_files
from hunyuan_train.report.page import name_runs
from hunyuan_train.report.record import RunRecord

FIND_SECONDS = 5.0  # between two looks for new runs
READ_SECONDS = 0.5  # between two looks at files that had nothing new
IDLE_SECONDS = 30.0  # after the last visit nothing is read
FRESH_SECONDS = 2.0  # that a visitor waits for it to be read again
MAX_RUNS = 24  # of a folder of runs: the newest
MARKS = (run_files.METRICS, run_files.STARTS, run_files.CONFIG)


class WatchedRuns:
    """Runs by the key that they have on the page."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._runs: dict[Path, RunRecord] = {}
        self._keys: dict[str, RunRecord] = {}
        self._lock = threading.Lock()
        self._wakes = threading.Event()
        self._is_fresh = threading.Event()  # cleared where nobody looks and nothing is read
        self._is_fresh.set()
        self._found_at = self._asked_at = 0.0
        self._find()
        for run in self._runs.values():  # what is small; of a long run a sample
            run.read_on()

    def start(self) -> None:
        """Read on from a thread of its own."""
        threading.Thread(target=self._read_on, daemon=True, name="reader").start()

    def current(self) -> dict[str, RunRecord]:
        """The runs as they are now; somebody looks at them.

        Who comes back after a while waits for a moment, or would be told of a launcher that gives
        no sign: its last one that was read is as old as the last visit.
        """
        self._asked_at = time.monotonic()
        self._wakes.set()
        self._is_fresh.wait(FRESH_SECONDS)
        with self._lock:
            return dict(self._keys)

    def _find(self) -> None:
        """Look for runs that have begun meanwhile."""
        self._found_at = time.monotonic()
        folders = find_runs(self.folders)
        for folder in folders:
            if folder not in self._runs:
                self._runs[folder] = RunRecord(folder)
        with self._lock:
            self._keys = name_runs([self._runs[folder] for folder in folders])

    def _read_on(self) -> None:
        while True:
            if time.monotonic() > self._asked_at + IDLE_SECONDS:
                self._is_fresh.clear()
                self._wakes.wait()
            self._wakes.clear()
            if time.monotonic() > self._found_at + FIND_SECONDS:
                self._find()
            has_new = any([run.read_on() for run in self._runs.values()])
            self._is_fresh.set()
            if not has_new:
                time.sleep(READ_SECONDS)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders of runs: those given, and what lies in one that holds runs itself, newest first."""
    found: dict[Path, None] = {}
    for folder in folders:
        if is_run(folder) or not folder.is_dir():
            found[folder] = None
            continue
        inside = [one for one in folder.iterdir() if one.is_dir() and is_run(one)]
        inside.sort(key=_last_change, reverse=True)
        found |= dict.fromkeys(inside[:MAX_RUNS])
    return list(found)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in MARKS)


def _last_change(folder: Path) -> float:
    times = [path.stat().st_mtime for name in MARKS if (path := folder / name).is_file()]
    return max(times, default=0.0)
