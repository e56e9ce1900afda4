"""Files to chunks of raw records, as a stream: no file is ever held in memory whole.

A chunk is plain data (bytes and line numbers), so that it can be sent to another process. What a
record means is read in decode.py and records/record.py.

The door of `reading`: a file goes in, chunks of raw records come out.
"""

import gzip
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import orjson
import zstandard

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.arrays import ArrayScanner, BrokenArrayError
from hunyuan_train.data.reading.sources import TABLE_SUFFIXES
from hunyuan_train.data.reading.tables import BrokenTableError, read_rows

BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20

_ZST_BLOCK_BYTES = 1 << 16  # compressed; text grows about tenfold
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(slots=True)
class Chunk:
    """Some records of one file in their order."""

    path: str
    lines: list[int] = field(default_factory=list)  # 1 is the first
    records: list[bytes] = field(default_factory=list)  # the JSON text of each
    # Problems of the file, and of lines that hold no record, each with its line.
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    first_element: int | None = None  # number of the first record, where the file is a JSON array
    num_bytes: int = 0  # how far this brings us in the file, as it lies on the disk

    def add(self, line: int, record: bytes) -> None:
        """Append one record."""
        self.lines.append(line)
        self.records.append(record)

    def report(self, line: int, kind: str, reason: str, fix: str) -> None:
        """Append one problem."""
        self.problems.append((line, Problem(kind, "", reason, fix)))


class _BrokenFileError(Exception):
    """The file ends, or stops making sense, before its end."""


_UNREADABLE = (
    _BrokenFileError,
    BrokenTableError,
    BrokenArrayError,
    UnicodeDecodeError,
    OSError,
    EOFError,
    zlib.error,
    zstandard.ZstdError,
)


def read_chunks(path: Path) -> Iterator[Chunk]:
    """The records of a file, about a megabyte at a time."""
    num_records = 0
    line = 1
    try:
        for chunk in _read_file(path):
            num_records += len(chunk.records)
            line = chunk.lines[-1] if chunk.lines else line
            yield chunk
    except _UNREADABLE as error:
        chunk = Chunk(str(path))
        reason = f"unreadable after this line: {error}"
        chunk.report(line, "broken_file", reason, "write it again")
        yield chunk
        return
    if not num_records:
        chunk = Chunk(str(path))
        chunk.report(1, "empty_file", "not a single record", "take the file off the list")
        yield chunk


def _read_file(path: Path) -> Iterator[Chunk]:
    position = 0
    with path.open("rb") as raw:
        for chunk in _read_any(path, raw):
            # A table is read back and forth; what counts is how far it was read at most.
            chunk.num_bytes = max(raw.tell() - position, 0)
            position += chunk.num_bytes
            yield chunk


def _read_any(path: Path, raw: BinaryIO) -> Iterator[Chunk]:
    if path.suffix in TABLE_SUFFIXES:
        yield from _read_table(path, raw)
        return
    blocks = _read_blocks(path, raw)
    head = next(blocks, b"")
    if head.startswith(_UTF16_BOMS):
        raise _BrokenFileError("it is UTF-16; convert it with iconv -f UTF-16 -t UTF-8")
    if head.startswith(_UTF8_BOM):
        head = head.removeprefix(_UTF8_BOM)
        chunk = Chunk(str(path))
        chunk.report(1, "bom", "the file starts with a byte order mark", "skipped")
        yield chunk
    blocks = chain([head], blocks)
    yield from _read_array(path, blocks) if _is_array(head) else _read_lines(path, blocks)


def _read_blocks(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    """The uncompressed bytes of a file."""
    if path.suffix == ".zst":
        yield from _read_zst(raw)
        return
    file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    while block := file.read(BLOCK_BYTES):
        yield block


def _read_zst(raw: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: that one takes a file cut off between two blocks for a whole one.
    frame = zstandard.ZstdDecompressor().decompressobj()
    is_open = False
    while block := raw.read(_ZST_BLOCK_BYTES):
        while block:
            is_open = True
            yield frame.decompress(block)
            block = b""
            if frame.eof:
                block, is_open = frame.unused_data, False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if is_open:
        raise _BrokenFileError("the compressed data ends too early")


def _read_lines(path: Path, blocks: Iterator[bytes]) -> Iterator[Chunk]:
    line = 1
    rest = b""
    is_skipping = False  # inside a line that is too long
    for block in blocks:
        chunk = Chunk(str(path))
        *lines, rest = (rest + block).split(b"\n")
        if is_skipping and lines:  # here it ends
            del lines[0]
            line += 1
            is_skipping = False
        for record in lines:
            _add_line(chunk, line, record)
            line += 1
        if is_skipping:
            rest = b""
        elif len(rest) > MAX_RECORD_BYTES:
            limit = MAX_RECORD_BYTES >> 20
            chunk.report(line, "size", f"a line of more than {limit} MB", "split the record")
            rest, is_skipping = b"", True
        yield chunk
    chunk = Chunk(str(path))
    if rest:
        _add_line(chunk, line, rest)
    yield chunk


def _add_line(chunk: Chunk, line: int, record: bytes) -> None:
    record = record.strip()
    if record:
        chunk.add(line, record)
    else:
        chunk.report(line, "blank_line", "a line with nothing on it", "skipped")


def _is_array(head: bytes) -> bool:
    """Whether a file is one JSON array of records, and not lines of which each is a dialogue."""
    if not head.lstrip().startswith(b"["):
        return False
    try:
        first = orjson.loads(head.lstrip().split(b"\n", 1)[0])
    except orjson.JSONDecodeError:
        return True
    is_dialogue = (
        first and isinstance(first[0], dict) and ("role" in first[0] or "from" in first[0])
    )
    return not is_dialogue


def _read_array(path: Path, blocks: Iterator[bytes]) -> Iterator[Chunk]:
    decode = getincrementaldecoder("utf-8")().decode
    scanner = ArrayScanner(max_element_length=MAX_RECORD_BYTES)
    num_elements = 0
    for block in chain(blocks, [b""]):
        chunk = Chunk(str(path), first_element=num_elements)
        is_last = not block
        for line, element in scanner.feed(decode(block, is_last), is_last=is_last):
            chunk.add(line, element.encode())
        num_elements += len(chunk.records)
        yield chunk


def _read_table(path: Path, raw: BinaryIO) -> Iterator[Chunk]:
    row = 1
    for records in read_rows(path, raw):
        chunk = Chunk(str(path))
        for record in records:
            chunk.add(row, record)
            row += 1
        yield chunk
