"""What a page shows of rank 0's log: the warnings in it, each once, and its end."""

import re
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.config.run_files import LOG
from hunyuan_train.json_file import open_regular_file
from hunyuan_train.report.growing_file import GrowingFile

MAX_WARNINGS = 40
TAIL_BYTES = 2**15
# 2026-03-02 10:00:00,000 WARNING hunyuan_train.x: the text
LINE = re.compile(r"(?P<time>\S+ \S+) (?:WARNING|ERROR) (?P<logger>\S+?): (?P<text>.*)")
MARKS = (b" WARNING ", b" ERROR ")


@dataclass(slots=True)
class LoggedWarning:
    """One warning, however often it was given."""

    text: str
    first: str  # when, as the log has it
    last: str
    count: int = 1


class LogFile:
    """The log of one run, read on while it grows."""

    def __init__(self, folder: Path) -> None:
        self.file = GrowingFile(folder / LOG)
        self.warnings: dict[str, LoggedWarning] = {}

    def read_on(self) -> bool:
        """Read a part of what is new, and say whether anything was."""
        try:
            is_cut, lines = self.file.read_new()
        except (OSError, ValueError):
            return False
        if is_cut:
            self.warnings = {}
        for line in lines:
            if any(mark in line for mark in MARKS):
                self._take(line.decode("utf-8", "replace"))
        return bool(lines)

    def _take(self, line: str) -> None:
        match = LINE.fullmatch(line)
        if not match or match["logger"] == "py.warnings":  # those of Python belong to the file
            return
        known = self.warnings.get(match["text"])
        if known:
            known.count, known.last = known.count + 1, match["time"]
        elif len(self.warnings) < MAX_WARNINGS:
            text, when = match["text"], match["time"]
            self.warnings[text] = LoggedWarning(text, when, when)

    def tail(self) -> list[str]:
        """Its last lines, at most `TAIL_BYTES`."""
        try:
            with open_regular_file(self.file.path) as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - TAIL_BYTES))
                text = file.read(TAIL_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):
            return []
        lines = text.splitlines()
        return lines[1:] if size > TAIL_BYTES else lines
