"""What is written past the page cache is what was handed over, wherever ranges begin and end."""

import errno
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hunyuan_train import past_cache
from hunyuan_train.past_cache import BLOCK_BYTES, PAGE, PastCache

SIZE = 2 * BLOCK_BYTES + 3 * PAGE + 17
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


def write_ranges(file: PastCache, ranges: list[tuple[int, int]], step: int) -> None:
    """Write ranges of the content into their places, so many bytes at a time."""
    for start, stop in ranges:
        for position in range(start, stop, step):
            part = CONTENT[position : min(position + step, stop)].copy()
            file.write(position, part.data)
            part[:] = 0  # whoever hands over bytes may use their memory again


@pytest.fixture(params=["past the cache", "no such files", "no such writes"])
def writes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, int, int]]:
    """What is written past the cache: what became of it, its place and its size.

    The file system can do that, or refuses to open such a file, or to write to it.
    """
    opened, written = os.open, os.pwrite
    seen: list[tuple[str, int, int]] = []
    past: set[int] = set()

    def open_or_refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        is_past = bool(flags & os.O_DIRECT)
        if is_past and request.param == "no such files":
            raise OSError(errno.EINVAL, "no such files here")
        # tmpfs and others have no such writes; what would be written is checked here.
        descriptor = opened(path, flags & ~os.O_DIRECT, mode)
        (past.add if is_past else past.discard)(descriptor)
        return descriptor

    def write_or_refuse(descriptor: int, content: memoryview, position: int) -> int:
        if descriptor in past:
            seen.append((request.param, position, len(content)))
            if request.param == "no such writes":
                raise OSError(errno.EINVAL, "no such writes here")
            address = np.frombuffer(content, np.uint8).ctypes.data
            assert position % PAGE == len(content) % PAGE == address % PAGE == 0
        return written(descriptor, content, position)

    monkeypatch.setattr(os, "open", open_or_refuse)
    monkeypatch.setattr(os, "pwrite", write_or_refuse)
    return seen


@pytest.mark.parametrize("step", [1000, PAGE, BLOCK_BYTES, SIZE])
@pytest.mark.parametrize(
    "ranges",
    [
        [(0, SIZE)],
        [(PAGE + 1, SIZE), (0, PAGE + 1)],
        [
            (0, 0),
            (3 * PAGE - 5, BLOCK_BYTES + 7),
            (BLOCK_BYTES + 7, SIZE),
            (5, 3 * PAGE - 5),
            (0, 5),
        ],
        [(0, 7), (7, 9), (9, SIZE - 1), (SIZE - 1, SIZE)],
    ],
)
def test_ranges_in_any_order_make_the_file(
    tmp_path: Path, ranges: list[tuple[int, int]], step: int, writes: list[tuple[str, int, int]]
) -> None:
    path = tmp_path / "file"
    with PastCache(path) as file:
        write_ranges(file, ranges, step)
    assert np.array_equal(np.fromfile(path, np.uint8), CONTENT)
    whole = sum(size for kind, _, size in writes if kind == "past the cache")
    assert whole == 0 or whole > SIZE - 2 * PAGE * (len(ranges) + 1)


def test_a_real_file_system_gives_back_what_several_have_written(tmp_path: Path) -> None:
    path, bounds = tmp_path / "file", [0, 5, PAGE + 3, BLOCK_BYTES - 1, SIZE]
    path.write_bytes(bytes(SIZE))

    def write(start: int, stop: int) -> None:
        with PastCache(path) as file:
            write_ranges(file, [(start, stop)], 100_001)

    pairs = pairwise(bounds)
    threads = [threading.Thread(target=write, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.fromfile(path, np.uint8), CONTENT)


def test_a_failed_write_is_raised_and_the_file_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_nothing(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(past_cache.os, "pwrite", write_nothing)
    with pytest.raises(OSError, match="No space left"), PastCache(tmp_path / "file") as file:
        write_ranges(file, [(0, SIZE)], BLOCK_BYTES)
    with pytest.raises(OSError, match="No space left"), PastCache(tmp_path / "file") as file:
        write_ranges(file, [(0, 5)], 5)  # told at the end
    assert len(os.listdir("/proc/self/fd")) == before
