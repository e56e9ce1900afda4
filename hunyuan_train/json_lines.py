"""Files of one JSON object a line, and the numbers that are logged of a step."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from hunyuan_train.whole_file import open_whole, sync

logger = logging.getLogger(__name__)

Numbers = dict[str, float | int]  # what a step or an evaluation reports, by name


def as_json_numbers(numbers: Numbers) -> dict[str, float | int | None]:
    """Numbers for JSON, which has neither NaN nor infinity: null stands for them."""
    return {name: value if isfinite(value) else None for name, value in numbers.items()}


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """The object of a line; None where it holds none with a step, as lines that were damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    has_step = isinstance(entry, dict) and type(entry.get("step")) is int
    return entry if has_step else None


class JsonLines:
    """A file of one JSON object per step. A disk that takes no more does not end a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten: list[str] = []  # lines that wait for room

    def append(self, entry: dict[str, Any]) -> None:
        """Write one object, which has a `step`, after those that could not be written before."""
        self.unwritten.append(json.dumps(entry) + "\n")
        is_first = len(self.unwritten) == 1
        error = self.flush()
        if error and is_first:
            logger.warning(
                "%s cannot be written: %s; its lines are kept in memory until it can be",
                *(self.path, error),
            )

    def flush(self) -> str | None:
        """Write what waits for room; say why that failed."""
        if not self.unwritten:
            return None
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self.unwritten))
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)  # no half of a line stays
            return error.strerror or str(error)
        self.unwritten.clear()
        return None

    def sync(self) -> None:
        """Wait until what is written is on disk, as far as that takes it."""
        with suppress(OSError):
            sync(self.path)

    def amend(self, entry: dict[str, Any]) -> None:
        """Let one object join the last line, if that is of the same step and the disk has room."""
        lines = self.unwritten or self._read()
        last = parse_line(lines[-1]) if lines else None
        if last is None or last["step"] != entry["step"]:
            return
        lines[-1] = json.dumps(last | entry) + "\n"
        if not self.unwritten:
            with suppress(OSError):
                self._replace(lines)

    def forget_after(self, step: int) -> None:
        """Drop lines past the step a run resumes at: those steps are about to be done again.

        A line that a power loss or somebody's editor has damaged stays where it is.
        """
        self.unwritten = [line for line in self.unwritten if json.loads(line)["step"] <= step]
        if not self.path.exists():
            return
        kept = 0  # bytes; steps only rise, so what goes is the end
        for line in self.path.read_bytes().splitlines(keepends=True):
            found = parse_line(line)
            if not line.endswith(b"\n") or (found and found["step"] > step):
                break
            kept += len(line)
        os.truncate(self.path, kept)

    def read(self) -> list[dict[str, Any]]:
        """Its objects, those that wait for room included, without damaged lines."""
        found = map(parse_line, (*self._read(), *self.unwritten))
        return [entry for entry in found if entry is not None]

    def _read(self) -> list[str]:
        """Its lines; one that a kill has cut off is none."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _replace(self, lines: Sequence[str]) -> None:
        with open_whole(self.path, is_ours=True) as file:
            file.write("".join(lines).encode(errors="surrogateescape"))


class NoLines:
    """Takes lines and keeps none: for ranks that do not write the file, and where nobody asked."""

    def append(self, entry: dict[str, Any]) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Nothing waits."""

    def sync(self) -> None:
        """Nothing is written."""

    def amend(self, entry: dict[str, Any]) -> None:
        """Keep nothing."""

    def forget_after(self, step: int) -> None:
        """There is nothing to forget."""

    def read(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []


Lines = JsonLines | NoLines
