"""What a disk returns is held against what was handed to it, part by part."""

import hashlib
import os
from pathlib import Path

import pytest
import xxhash

from hunyuan_train.checkpoint.errors import DiskError
from hunyuan_train.checkpoint.publish import hash_file, hash_files
from hunyuan_train.checkpoint.read_back import BLOCK_BYTES, WrittenParts, join_parts, read_back

CONTENT = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"the end"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def note(written: WrittenParts, file: Path, start: int, stop: int) -> None:
    written.note(file, start, memoryview(CONTENT)[start:stop])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0, len(CONTENT))],
        [(BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 5), (7, 9), (9, 9), (9, 100)],  # in no order
    ],
)
def test_a_whole_file_has_the_digest_of_its_content(file: Path, parts: list) -> None:
    written = WrittenParts()
    for start, stop in parts:
        note(written, file, start, stop)
    advanced: list[int] = []
    digest = hash_file(file, advanced.append, written.by_name[file.name])
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert sum(advanced) == len(CONTENT)


def test_a_read_that_ends_early_goes_on_where_it_ended(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv

    def read_some(descriptor: int, buffers: list[memoryview], position: int) -> int:
        return read(descriptor, [buffers[0][: BLOCK_BYTES // 2 + 512]], position)

    monkeypatch.setattr(os, "preadv", read_some)
    written = WrittenParts()
    note(written, file, 3, len(CONTENT))
    digest = hash_file(file, parts=written.by_name[file.name])
    assert digest == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_a_file_of_any_size_has_its_digest(tmp_path: Path, size: int) -> None:
    (tmp_path / "sized").write_bytes(CONTENT[:size])
    assert hash_file(tmp_path / "sized") == hashlib.sha256(CONTENT[:size]).hexdigest()


@pytest.mark.parametrize("place", [0, 8, BLOCK_BYTES + 3, 3 * BLOCK_BYTES - 1])
def test_a_flipped_bit_in_any_part_is_named(file: Path, place: int) -> None:
    written, other = WrittenParts(), WrittenParts()
    note(written, file, 0, BLOCK_BYTES)
    note(other, file, BLOCK_BYTES, 3 * BLOCK_BYTES)
    content = bytearray(CONTENT)
    content[place] ^= 16
    file.write_bytes(content)
    parts = join_parts([written.by_name, other.by_name])
    with pytest.raises(DiskError, match=r"file does not return what was written to it, in its"):
        hash_files([file], lambda _: None, parts)


def test_a_part_that_is_cut_off_is_noticed(file: Path) -> None:
    written = WrittenParts()
    note(written, file, 5, len(CONTENT))
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(DiskError):
        read_back(file, xxhash.xxh3_128(), written.by_name[file.name])
