"""Files that appear whole or not at all, whenever their writer is killed or its disk is full."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MODE = 0o666  # before the user's mask


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, under a name nobody can foresee, and rename it at the end.

    A link is followed to what it names, and a pipe or device is written as it is.

    Raises:
        OSError: it cannot be made there, or the disk is full; what was there before stays.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, MODE & ~_read_mask())
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):  # renamed by now, if all went well
            os.unlink(name)


def _read_mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
