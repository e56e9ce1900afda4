"""Files of JSON lines that are read while a run writes them: only what is new, by its offset."""

import os
from collections.abc import Callable
from pathlib import Path

import orjson

from hunyuan_train.json_file import open_regular_file

Row = dict[str, object]
MAX_BYTES = 2**20  # read at once: 10 ms of parsing, during which nobody else is answered
MAX_LINE_BYTES = 2**26  # beyond, a file is no file of lines


class GrowingFile:
    """Gives whole lines once each, and notices when the file is another one, or was cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # behind the last whole line that was given
        self.last_line = b""  # stands before the offset, as long as the file is the same
        self.num_bytes = 0  # of the file, when it was last looked at

    def read_new(self, max_bytes: int = MAX_BYTES) -> tuple[bool, list[bytes]]:
        """Lines that were completed since the last call.

        Returns:
            whether the file is no continuation of what was read (a resumed run drops lines, an
            amended last line is replaced): then these lines are its first ones; and the lines.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no ordinary file, or one of its lines is endless.
        """
        if not self.path.exists():
            is_cut = self.offset > 0
            self._begin()
            self.num_bytes = 0
            return is_cut, []
        with open_regular_file(self.path) as file:
            self.num_bytes = os.fstat(file.fileno()).st_size
            is_cut = self._is_another(file.fileno())
            if is_cut:
                self._begin()
            file.seek(self.offset)
            content = file.read(max_bytes)
            while content and b"\n" not in content and len(content) < MAX_LINE_BYTES:
                more = file.read(max_bytes)
                if not more:
                    break
                content += more
        whole, newline, _ = content.rpartition(b"\n")
        if not newline:
            if len(content) >= MAX_LINE_BYTES:
                raise ValueError(f"it has a line of more than {MAX_LINE_BYTES:,} bytes")
            return is_cut, []
        lines = whole.split(b"\n")
        self.offset += len(whole) + 1
        self.last_line = lines[-1] + b"\n"
        return is_cut, lines

    def _is_another(self, descriptor: int) -> bool:
        start = self.offset - len(self.last_line)
        return os.pread(descriptor, len(self.last_line), start) != self.last_line

    def _begin(self) -> None:
        self.offset, self.last_line = 0, b""


def parse_lines(
    lines: list[bytes], read_line: Callable[[bytes], object]
) -> tuple[list[object], dict[int, str]]:
    """The values of lines, and what is wrong with those that have none, by index.

    Args:
        lines: of JSON, each without its end.
        read_line: reads one line on its own, where they cannot be read all at once.
    """
    try:
        values = orjson.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        values = []
    if len(values) == len(lines):
        return values, {}
    values, faults = [], {}
    for index, line in enumerate(lines):
        try:
            values.append(read_line(line))
        except (ValueError, RecursionError) as error:
            values.append(None)
            faults[index] = str(error)
    return values, faults
