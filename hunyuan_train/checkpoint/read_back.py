"""What was handed to the disk, against what the disk returns.

Parts of a file are summed while they are written, in any order and by any thread or rank. When all
are there the file is read once, from the disk and not from memory, and each part is summed again.
XXH3 (`xxhash`) does that at the speed of memory; it finds damage, and guards against nobody.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import xxhash

from hunyuan_train.checkpoint.errors import DiskError

BLOCK_BYTES = 2**22


class Part(NamedTuple):
    """Bytes [start, stop) of a file, and their sum in memory."""

    start: int
    stop: int
    sum: int


class Digest(Protocol):
    """A checksum of a whole file, as `hashlib` and `xxhash` have it."""

    def update(self, content: memoryview, /) -> None:
        """Add the bytes that follow."""
        ...


class WrittenParts:
    """The parts of all files that one process writes."""

    def __init__(self) -> None:
        self.by_name: defaultdict[str, list[Part]] = defaultdict(list)

    def note(self, file: Path, start: int, content: memoryview) -> None:
        """Sum a part, whose bytes nothing changes meanwhile; called by any thread."""
        part = Part(start, start + content.nbytes, xxhash.xxh3_64_intdigest(content))
        self.by_name[file.name].append(part)


def join_parts(processes: Iterable[dict[str, list[Part]]]) -> dict[str, list[Part]]:
    """The parts of every file, whichever process wrote them."""
    joined: defaultdict[str, list[Part]] = defaultdict(list)
    for parts in processes:
        for name, some in parts.items():
            joined[name] += some
    return joined


def read_back(
    path: Path,
    digest: Digest,
    parts: Iterable[Part] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Sum a file as its disk returns it, once it is safely there.

    Args:
        path: of the file.
        digest: of all of it, begun.
        parts: of which it is known what they were in memory.
        advance: told the bytes of each block that is read.

    Raises:
        DiskError: the disk returns something else than was written.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        # Without this it would be read back from memory, and say nothing about the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        def read(num_bytes: int | None) -> int:
            part = xxhash.xxh3_64()
            for block in _read_blocks(file.readinto, num_bytes):
                digest.update(block)
                part.update(block)
                advance(len(block))
            return part.intdigest()

        position = 0
        for start, stop, expected in sorted(parts):
            read(start - position)
            if read(stop - start) != expected:
                raise DiskError(
                    f"{path} does not return what was written to it, in its bytes {start:,} to "
                    f"{stop:,}; check that disk, and give a folder on another"
                )
            position = stop
        read(None)


def _read_blocks(
    read_into: Callable[[memoryview], int | None], num_bytes: int | None
) -> Iterator[memoryview]:
    """So many bytes, or those up to the end of the file; each block is good until the next."""
    buffer = memoryview(
        bytearray(BLOCK_BYTES if num_bytes is None else min(num_bytes, BLOCK_BYTES))
    )
    while num_bytes is None or num_bytes > 0:
        size = read_into(buffer if num_bytes is None else buffer[:num_bytes])
        if not size:
            return
        yield buffer[:size]
        num_bytes = None if num_bytes is None else num_bytes - size
