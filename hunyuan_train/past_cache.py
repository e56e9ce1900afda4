"""Writes large files past the page cache, in a thread of its own.

Nothing is copied into pages that the system must find, fill and write back later. So a write takes
a fifth of the processor's time, wherever that time would be spent, and the cache keeps what others
read. A file system that cannot do that is written to in the usual way.
"""

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE  # such writes begin and end at whole pages, in the file and in memory
BLOCK_BYTES = 2**22
WRITE_BYTES = 2**20
OWN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # memory; shared takes longer to come by
MODE = 0o666  # before the user's mask
REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)  # by file systems that cannot


class PastCache:
    """A file that is written in ranges, each from its first byte to its last.

    The bytes of a range are collected in one buffer while another is written. Several may write
    parts of one file that do not overlap.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, which is made where there is none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, MODE)
        self.direct = _open_direct(path)  # None where the file system refuses
        self.buffers = [memoryview(mmap.mmap(-1, BLOCK_BYTES, flags=OWN)) for _ in range(2)]
        self.base = 0  # where the first buffer lies in the file; the start of a page
        self.begin = self.end = 0  # which of its bytes are to be written
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None  # of the second buffer

    def write(self, position: int, content: memoryview) -> None:
        """Write bytes to a place; they may change as soon as this returns.

        Raises:
            OSError: an earlier write failed.
        """
        if position != self.base + self.end:
            self._submit()
            self.begin = self.end = position % PAGE
            self.base = position - self.begin
        while content:
            part = content[: BLOCK_BYTES - self.end]
            # numpy lets other threads go on while it copies; a memoryview does not.
            np.copyto(np.frombuffer(self.buffers[0], np.uint8, len(part), self.end), part)
            self.end += len(part)
            content = content[len(part) :]
            if self.end == BLOCK_BYTES:
                self._submit()

    def finish(self) -> None:
        """Wait until all is handed to the system; see `sync`.

        Raises:
            OSError: a write failed.
        """
        self._submit()
        self._wait()

    def sync(self) -> None:
        """Wait until all is on disk.

        Raises:
            OSError: a write failed.
        """
        self.finish()
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Let go of the file; what is collected and not yet handed over is dropped."""
        self.pool.shutdown()
        for descriptor in (self.descriptor, self.direct):
            if descriptor is not None:
                os.close(descriptor)

    def __enter__(self) -> "PastCache":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def _submit(self) -> None:
        """Begin to write what is collected, and go on behind it in the other buffer."""
        self._wait()
        if self.begin < self.end:
            self.pending = self.pool.submit(
                self._write, self.buffers[0], self.base, self.begin, self.end
            )
            self.buffers.reverse()
        self.base += self.end - self.end % PAGE
        self.begin = self.end = self.end % PAGE

    def _wait(self) -> None:
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, buffer: memoryview, base: int, begin: int, end: int) -> None:
        """Write bytes [begin, end) of a buffer that lies at `base` in the file."""
        first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
        if self.direct is None or first >= last:
            write_cached(self.descriptor, buffer[begin:end], base + begin)
            return
        write_cached(self.descriptor, buffer[begin:first], base + begin)
        num_written = self._write_direct(buffer[first:last], base + first)
        first += num_written
        write_cached(self.descriptor, buffer[first:end], base + first)

    def _write_direct(self, content: memoryview, position: int) -> int:
        """Write whole pages; how many bytes of them, which are all unless the system refuses."""
        assert self.direct is not None
        num_written = 0
        while num_written < len(content) and num_written % PAGE == 0:
            try:
                num_written += os.pwrite(self.direct, content[num_written:], position + num_written)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                break
        return num_written


def write_cached(descriptor: int, content: memoryview, position: int) -> None:
    """Write bytes to a place of a file in the usual way, and have them put on disk soon.

    In small calls: for each call Linux (6.18) looks for a run of free memory as large as the call,
    and one of 8 MB costs six times as long as eight of 1 MB.
    """
    start = position
    while content:
        num_written = os.pwrite(descriptor, content[:WRITE_BYTES], position)
        content, position = content[num_written:], position + num_written
    if position - start >= PAGE:  # less than a page would take its neighbours' bytes along
        os.posix_fadvise(descriptor, start, position - start, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path) -> int | None:
    """A descriptor that writes past the page cache; None where the file system has none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
