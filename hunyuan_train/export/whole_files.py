"""Files of an export that are read back and summed as soon as they are whole.

A disk gives and takes at once more than it does by turns, and SHA-256 keeps a core busy for as long
as writing takes. So neither waits until the last file is written.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from hunyuan_train.checkpoint.publish import hash_file, num_threads
from hunyuan_train.checkpoint.read_back import WrittenParts
from hunyuan_train.model.safetensors_header import TensorLocation


class WholeFiles:
    """Which files are whole, and their sums."""

    def __init__(self, written: WrittenParts, pool: ThreadPoolExecutor) -> None:
        """Store what is given.

        Args:
            written: the parts of each file, which are compared with what the disk returns.
            pool: for summing.
        """
        self.written = written
        self.pool = pool
        self.num_missing: dict[Path, int] = {}  # bytes of tensors, by file
        self.sums: dict[Path, Future[str]] = {}
        self.lock = Lock()

    def expect(self, locations: Iterable[TensorLocation]) -> None:
        """Learn of all tensors that the files will hold."""
        for one in locations:
            self.num_missing[one.file] = self.num_missing.get(one.file, 0) + one.num_bytes

    def add(self, file: Path, num_bytes: int) -> None:
        """Learn that the system has so many more bytes of a file; called by any thread.

        They are among the written parts by then.
        """
        with self.lock:
            self.num_missing[file] -= num_bytes
            if not self.num_missing[file]:
                parts = self.written.by_name[file.name]
                self.sums[file] = self.pool.submit(hash_file, file, parts=parts)

    def wait(self, advance: Callable[[int], None]) -> dict[str, str]:
        """SHA-256 of the files that were whole before the last was written, by name.

        Args:
            advance: told the bytes of each file that is summed.

        Raises:
            DiskError: the disk returns something else than was written.
        """
        digests = {}
        for file, one in self.sums.items():
            digests[file.name] = one.result()
            advance(file.stat().st_size)
        return digests


@contextmanager
def summed_beside(written: WrittenParts) -> Iterator[WholeFiles]:
    """Sum files that are whole while others are written; where that fails, begin no more."""
    pool = ThreadPoolExecutor(num_threads())
    try:
        yield WholeFiles(written, pool)
    finally:
        pool.shutdown(cancel_futures=True)
