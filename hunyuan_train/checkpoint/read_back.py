"""What was handed to the disk, against what the disk returns.

Parts of a file are summed while they are written, in any order and by any thread or rank. When all
are there the file is read once, from the disk and not from memory, and each part is summed again.
XXH3 (`xxhash`) does that at the speed of memory; it finds damage, and guards against nobody.
"""

import mmap
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
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
        digest: of all of it, begun. What it is given stays as it is until it is given the next.
        parts: of which it is known what they were in memory; they do not overlap.
        advance: told the bytes of each block that is read.

    Raises:
        DiskError: the disk returns something else than was written.
    """
    check = PartCheck(path, parts)
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        for position, block in read_from_disk(file):
            digest.update(block)
            check.add(position, block)
            advance(len(block))
    check.finish()


class PartCheck:
    """Compares the parts of a file with what they were, while it is read from its start on."""

    def __init__(self, path: Path, parts: Iterable[Part]) -> None:
        self.path = path
        self.parts = deque(sorted(parts))
        self.sum = xxhash.xxh3_64()  # of what is read of the first one

    def add(self, position: int, block: memoryview) -> None:
        """Look at the next block, which begins at `position`.

        Raises:
            DiskError: a part that ends in it is another.
        """
        end = position + len(block)
        while self.parts and self.parts[0].start < end:
            start, stop, _ = self.parts[0]
            self.sum.update(block[max(start - position, 0) : stop - position])
            if stop > end:
                return
            self._end_part()

    def finish(self) -> None:
        """Say that the file ends here.

        Raises:
            DiskError: it is too short.
        """
        while self.parts:
            self._end_part()

    def _end_part(self) -> None:
        start, stop, expected = self.parts.popleft()
        if self.sum.intdigest() != expected:
            raise DiskError(
                f"{self.path} does not return what was written to it, in its bytes {start:,} to "
                f"{stop:,}; check that disk, and give a folder on another"
            )
        self.sum.reset()


def read_from_disk(file: FileIO) -> Iterator[tuple[int, memoryview]]:
    """All blocks of a file as its disk returns them, and where each begins.

    Reads go past the page cache: what they return is the disk's, and they take a tenth of the
    processor's time. A file system that cannot do that is asked to forget the file first.

    Yields:
        a block is good until the next but one.
    """
    size = os.fstat(file.fileno()).st_size
    # Reads past the cache need memory in whole pages.
    buffers = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(2)]
    with ExitStack() as context:
        direct = _open_past_cache(file, buffers[0])
        if direct is None:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            context.callback(os.close, direct)
        for position in range(0, size, BLOCK_BYTES):
            block = buffers[0][: size - position]
            num_read = 0 if direct is None else os.preadv(direct, [buffers[0]], position)
            while num_read < len(block):
                received = os.preadv(file.fileno(), [block[num_read:]], position + num_read)
                if not received:
                    break  # it has become shorter, which the sums will tell
                num_read += received
            yield position, block[:num_read]
            buffers.reverse()


def _open_past_cache(file: FileIO, buffer: memoryview) -> int | None:
    """A descriptor that reads past the page cache; None where the file system has none."""
    try:
        direct = os.open(str(file.name), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.preadv(direct, [buffer[: mmap.PAGESIZE]], 0)  # some refuse only now
    except OSError:
        os.close(direct)
        return None
    return direct


class SumBeside:
    """A checksum that is computed in a thread of its own while the next blocks are read.

    For one that takes longer than reading does, and of which no part can be done apart: SHA-256.
    """

    def __init__(self, digest: Digest, pool: ThreadPoolExecutor, *, most_pending: int = 1) -> None:
        """Store what is given.

        Args:
            digest: begun.
            pool: of one thread, which nobody else uses.
            most_pending: blocks that may wait to be added. With several, the thread has always
                something to do, and does not wait for whoever brings the next.
        """
        self.digest = digest
        self.pool = pool
        self.most_pending = most_pending
        self.pending: deque[Future[None]] = deque()

    def update(self, content: memoryview, /) -> None:
        """Begin to add the bytes that follow.

        They must stay as they are until `most_pending` further blocks have come.
        """
        while len(self.pending) >= self.most_pending:
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self.digest.update, content))

    def finish(self) -> None:
        """Wait until all is in."""
        while self.pending:
            self.pending.popleft().result()
