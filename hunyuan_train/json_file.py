"""JSON that somebody else wrote, read so that no file keeps us busy or gets round a rule.

A pipe or device is refused before it is read, a file beyond a size is not taken into memory, and
what readers of JSON understand differently is an error: names given twice, NaN, deep nesting.
"""

import json
import os
import stat
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from hunyuan_train.plain_text import make_plain_name

MAX_BYTES = 2**24  # ten times what the description of a large model takes


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading; one that could block or never end is refused.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no ordinary file (a folder, pipe or device)")
    return file


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        OSError: it cannot be read.
        ValueError: see `open_regular_file`; or it is larger than `max_bytes`.
    """
    with open_regular_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes, which no such file needs")
    return content


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        OSError: it cannot be read.
        ValueError: see `read_bytes` and `parse_json`; or it holds no object.
    """
    content = parse_json(read_bytes(path, max_bytes=max_bytes))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401  JSON holds any type
    """Read JSON by the letter of its standard.

    Raises:
        ValueError: no UTF-8, no JSON, a name that is given twice, a number that is not finite, or
            nested too deeply.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_take_once,
            parse_constant=_refuse_constant,
            parse_float=_read_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _take_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _), *_] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it gives {make_plain_name(twice)!r} twice")
    return found


def _refuse_constant(word: str) -> float:
    raise ValueError(f"it holds {word}, which is no JSON")


def _read_finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"it holds {digits}, which no number can be")
    return value
