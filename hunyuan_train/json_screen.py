"""A screen for schedulers: every line on stderr is one JSON object.

What is a line of JSON already stays it; any other text becomes `{"time": ..., "message": ...}`.
"""

import io
import json
import logging
import sys
import threading
import time
from typing import Any, TextIO

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
NUMBERS = "numbers"  # `extra` of a log line that has some


class JsonFormatter(logging.Formatter):
    """Log lines as objects, with the numbers of a step or an evaluation where they have them."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in it."""
        content: dict[str, Any] = {
            "time": time.strftime(TIME_FORMAT, time.localtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content | record.__dict__.get(NUMBERS, {}))


class JsonStream(io.TextIOBase):
    """A stream that turns lines into objects."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rest = ""  # of a line that has not ended
        self.lock = threading.RLock()  # a signal handler may print, too

    def write(self, text: str) -> int:
        """Write the lines that are complete."""
        with self.lock:
            *lines, self.rest = (self.rest + text).split("\n")
            for line in lines:
                if line.strip():
                    self.stream.write(f"{as_object(line)}\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what is complete."""
        self.stream.flush()

    def fileno(self) -> int:
        """Of the stream itself, for child processes."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Nobody draws bars or colours here."""
        return False


def as_object(line: str, **more: object) -> str:
    """A line as one JSON object, with some fields more."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        content = {"time": time.strftime(TIME_FORMAT), "message": line.strip()}
    return json.dumps(content | more)


def write_json_to_screen() -> None:
    """Turn stderr of this process into lines of JSON; once is enough."""
    if not isinstance(sys.stderr, JsonStream):
        sys.stderr = JsonStream(sys.stderr)
