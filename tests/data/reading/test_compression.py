"""A compressed file takes a bounded amount of memory and time, whatever it expands to."""

import bz2
import gzip
import io
import lzma
import tracemalloc

import pytest
import zstandard

from hunyuan_train.data.reading import compression, readers
from hunyuan_train.data.reading.readers import read_chunks

BLOCK = 1 << 20
PACK = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
CONTENT = {".gz": "gzip", ".zst": "zstandard", ".bz2": "bzip2", ".xz": "xz"}


def _pack_much(suffix, text, megabytes):
    """So much of one text, compressed in pieces that stand end to end."""
    return PACK[suffix](text * ((2 << 20) // len(text))) * (megabytes >> 1)


@pytest.mark.parametrize("suffix", list(PACK))
def test_blocks_are_small_however_much_stands_behind_a_byte(suffix):
    packed = io.BytesIO(_pack_much(suffix, b"x", 64))
    tracemalloc.start()
    num_bytes = 0
    for block in compression.decompress(packed, CONTENT[suffix], BLOCK):
        assert len(block) <= BLOCK
        num_bytes += len(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes == 64 << 20
    assert peak < 48 << 20


@pytest.mark.parametrize("suffix", [".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("text", [b"x", b"\n", b" ", b"{}\n"])
def test_a_bomb_is_refused_by_name(tmp_path, monkeypatch, suffix, text):
    monkeypatch.setattr(compression, "MIN_BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(compression, "MAX_EXPANSION", 100)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(_pack_much(suffix, text, 4))
    problems = [problem for chunk in read_chunks(path) for _, problem in chunk.problems]
    [broken] = [problem for problem in problems if problem.kind == "broken_file"]
    assert "which no text does" in broken.reason


def test_a_line_without_an_end_is_given_up_and_the_rest_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 2 << 20)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b"x" * (32 << 20) + b'\n{"id": 1}\n'))
    chunks = list(read_chunks(path))
    assert [record for chunk in chunks for record in chunk.records] == [b'{"id": 1}']
    assert [problem.kind for chunk in chunks for _, problem in chunk.problems] == ["size"]


def test_blank_lines_are_counted_and_not_held(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (32 << 20) + b'{"id": 1}\n'))
    chunks = list(read_chunks(path))
    [(line, problem)] = [one for chunk in chunks for one in chunk.problems]
    assert (line, problem.kind) == (1, "blank_line")
    assert problem.reason.startswith("33,554,432 lines")
    assert [line for chunk in chunks for line in chunk.lines] == [33_554_433]
