"""Files that appear whole or not at all, whenever their writer is killed or its disk is full."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MODE = 0o666  # before the user's mask
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a share of it, a limit on file sizes


@contextmanager
def open_whole(path: Path, *, is_ours: bool = False) -> Iterator[BinaryIO]:
    """Write a file beside its place, under a name nobody can foresee, and rename it at the end.

    By then it is on disk, and so is its name.

    Args:
        path: of the user's, where a link is followed to what it names, and a pipe or device is
            written as it is.
        is_ours: the program has chosen the name: what else stands there was put there by somebody
            and is replaced.

    Raises:
        OSError: it cannot be made there, or the disk is full; what was there before stays.
    """
    if not is_ours and path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.absolute() if is_ours else path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, MODE & ~_read_mask())
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):  # renamed by now, if all went well
            os.unlink(name)


def _read_mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_lock(path: Path) -> BinaryIO:
    """Open a file for `flock`, made where there is none; what stands in it stays.

    Raises:
        OSError: it cannot be made, or is a link, which could lead anywhere, or no file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, MODE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no file, and so no lock", str(path))
    return os.fdopen(descriptor, "r+b", buffering=0)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, so that a power loss leaves them."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
