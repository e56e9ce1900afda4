"""Files to chunks of raw records, as a stream: no file is ever held in memory whole.

A chunk is plain data (bytes and line numbers), so that it can be sent to another process. What a
record means is read in decode.py and records/record.py.

The door of `reading`: a file goes in, chunks of raw records come out.
"""

import hashlib
import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import orjson

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.arrays import ArrayScanner, BrokenArrayError
from hunyuan_train.data.reading.compression import (
    DAMAGED,
    CompressionError,
    Readable,
    decompress,
)
from hunyuan_train.data.reading.contents import (
    COMPRESSED,
    HEAD_BYTES,
    TABLES,
    Content,
    describe_foreign,
    find_content,
)
from hunyuan_train.data.reading.decode import describe_encoding
from hunyuan_train.data.reading.delimited import (
    ROWS_PER_CHUNK,
    BrokenRowsError,
    find_delimiter,
    read_delimited,
)
from hunyuan_train.data.reading.sources import says_content
from hunyuan_train.errors import DataError

BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20

# An object as programs print it for people. A brace alone is no record, and a key begins none.
_PRINTED_OBJECT = re.compile(rb'\s*\{[ \t\r]*\n\s*"')
_UTF8_BOM = b"\xef\xbb\xbf"


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


class ChangedFileError(DataError):
    """A file whose content is not what it was a moment ago."""


class _BrokenFileError(Exception):
    """The file is not what its name says, or stops making sense before its end."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


_UNREADABLE = (
    _BrokenFileError,
    BrokenArrayError,
    BrokenRowsError,
    CompressionError,
    UnicodeDecodeError,
    OSError,
    EOFError,
    zlib.error,
    *DAMAGED,
)


def read_chunks(path: Path, *, expected_hash: str | None = None) -> Iterator[Chunk]:
    """The records of a file, about a megabyte at a time.

    Args:
        path: of the file.
        expected_hash: SHA-256 that its content must have; None where it may be anything.

    Raises:
        ChangedFileError: what was read has another hash. Nothing of it may be used.
    """
    num_records = 0
    line = 1
    try:
        for chunk in _read_file(path, expected_hash):
            num_records += len(chunk.records)
            line = chunk.lines[-1] if chunk.lines else line
            yield chunk
    except _UNREADABLE as error:
        chunk = Chunk(str(path))
        reason, fix = _describe_error(error)
        chunk.report(line, "broken_file", reason, fix)
        yield chunk
        return
    if not num_records:
        chunk = Chunk(str(path))
        chunk.report(1, "empty_file", "not a single record", "take the file off the list")
        yield chunk


def _describe_error(error: Exception) -> tuple[str, str]:
    """What is wrong with a file, and the remedy."""
    if isinstance(error, _BrokenFileError):
        return str(error), error.fix
    if isinstance(error, UnicodeDecodeError):
        text, start = error.object, error.start
        first, end = text.rfind(b"\n", 0, start) + 1, text.find(b"\n", start)
        line = text[first : end if end > 0 else None]
        here = UnicodeDecodeError("utf-8", line, start - first, start - first + 1, error.reason)
        problem = describe_encoding(line, here)
        return f"unreadable after this line: {problem.reason}", problem.fix
    return f"unreadable after this line: {error}", "write it again"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashedFile:
    """A file that is hashed as it is read from its start to its end."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content = self.raw.read(size)
        self.digest.update(content)
        return content

    def tell(self) -> int:
        """How far it was read."""
        return self.raw.tell()

    def finish(self) -> str:
        """The hash of the whole file; what a reader left is read now."""
        while self.read(BLOCK_BYTES):
            pass
        return self.digest.hexdigest()


def _read_file(path: Path, expected_hash: str | None) -> Iterator[Chunk]:
    position = 0
    with path.open("rb") as raw:
        content = _find_content(path, raw.read(HEAD_BYTES))
        raw.seek(0)
        hashed = _HashedFile(raw)
        # A table is read back and forth, so it is hashed by itself, behind.
        read = _read_table(path, raw, content) if content in TABLES else None
        for chunk in read or _read_text(path, hashed, content):
            # What counts is how far it was read at most.
            chunk.num_bytes = max(raw.tell() - position, 0)
            position += chunk.num_bytes
            yield chunk
        if expected_hash is None:
            return
        if read:
            raw.seek(0)
        if hashed.finish() != expected_hash:
            raise ChangedFileError(
                f"{path} changes while it is read; start again once it is written"
            )


def _find_content(path: Path, head: bytes) -> Content:
    """What a file holds; the streams of old versions of Arrow have only their name."""
    content = find_content(head)
    is_unmarked = content == "text" and not (_is_text(head) or describe_foreign(head))
    return "arrow" if is_unmarked and path.suffix.lower() == ".arrow" else content


def _say_content(path: Path, content: Content) -> Iterator[Chunk]:
    """Say where a name promises another content."""
    if path.stat().st_size and not says_content(path, content):
        chunk = Chunk(str(path))
        reason = f"the name says otherwise, but the content is {content}"
        chunk.report(1, "misnamed", reason, "read as what it is")
        yield chunk


def _read_text(path: Path, raw: Readable, content: Content) -> Iterator[Chunk]:
    """Records of lines, of a JSON array or of rows, compressed or not."""
    yield from _say_content(path, content)
    if content in COMPRESSED:
        blocks = decompress(raw, content, BLOCK_BYTES)
    else:
        blocks = iter(lambda: raw.read(BLOCK_BYTES), b"")
    head = next(blocks, b"")
    _refuse_foreign(head, content)
    if not says_content(path, content) and content == "text" and not _is_text(head):
        raise _BrokenFileError(f"it is not what {path.suffix} files are", "write it again")
    if head.startswith(_UTF8_BOM):
        head = head.removeprefix(_UTF8_BOM)
        chunk = Chunk(str(path))
        chunk.report(1, "bom", "the file starts with a byte order mark", "skipped")
        yield chunk
    blocks = chain([head], blocks)
    delimiter = find_delimiter(path)
    if delimiter:
        rows = read_delimited(blocks, delimiter, max_bytes=MAX_RECORD_BYTES)
        yield from _gather(path, rows)
        return
    if _PRINTED_OBJECT.match(head):
        raise _BrokenFileError(
            "a JSON object that goes on over several lines, and the file is no JSON array",
            "write each object on one line, as `jq -c .` does, or all of them as one array",
        )
    yield from _read_array(path, blocks) if _is_array(head) else _read_lines(path, blocks)


def _is_text(head: bytes) -> bool:
    """Whether these may be the first bytes of a text."""
    try:
        getincrementaldecoder("utf-8")().decode(head[:HEAD_BYTES])
    except UnicodeDecodeError:
        return False
    return b"\0" not in head[:HEAD_BYTES]


def _refuse_foreign(head: bytes, content: Content) -> None:
    """Name what lies in place of the dialogues."""
    if foreign := describe_foreign(head[:HEAD_BYTES]):
        what, fix = foreign
        inside = f", inside of {content}" if content in COMPRESSED else ""
        raise _BrokenFileError(f"it is {what}{inside}", fix)
    inner = find_content(head[:HEAD_BYTES])
    if content in COMPRESSED and inner != "text":
        raise _BrokenFileError(f"it is {inner} inside of {content}", "unpack it once")


def _gather(path: Path, rows: Iterable[tuple[int, bytes]]) -> Iterator[Chunk]:
    """Some hundred rows a chunk; what came before an error is not lost."""
    chunk = Chunk(str(path))
    try:
        for line, record in rows:
            chunk.add(line, record)
            if len(chunk.records) == ROWS_PER_CHUNK:
                yield chunk
                chunk = Chunk(str(path))
    except _UNREADABLE:
        yield chunk
        raise
    yield chunk


def _read_lines(path: Path, blocks: Iterator[bytes]) -> Iterator[Chunk]:
    lines = _Lines(path)
    for block in blocks:
        yield lines.feed(block)
    yield lines.finish()


class _Lines:
    """Cuts blocks into lines, of which it holds no more than a record may be long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1
        self.rest = b""
        self.is_skipping = False  # inside a line that is too long
        self.num_blank = 0  # lines in a row just now: counted, for a file may hold nothing else

    def feed(self, block: bytes) -> Chunk:
        """The records that end in this block."""
        chunk = Chunk(str(self.path))
        if not self.rest and not self.is_skipping and block.isspace():
            self._pass_blanks(block)
            return chunk
        *lines, rest = block.split(b"\n")
        if lines:
            lines[0] = self.rest + lines[0]
            self.rest = b""
        if self.is_skipping and lines:  # here it ends
            del lines[0]
            self.line += 1
            self.is_skipping = False
        for record in lines:
            self._add(chunk, record)
            self.line += 1
        if not self.is_skipping:
            self.rest += rest
        if len(self.rest) > MAX_RECORD_BYTES:
            limit = MAX_RECORD_BYTES >> 20
            self._end_blanks(chunk)
            chunk.report(self.line, "size", f"a line of more than {limit} MB", "split the record")
            self.rest, self.is_skipping = b"", True
        return chunk

    def finish(self) -> Chunk:
        """What is left at the end of the file."""
        chunk = Chunk(str(self.path))
        if self.rest:
            self._add(chunk, self.rest)
            self.line += 1
        self._end_blanks(chunk)
        return chunk

    def _pass_blanks(self, block: bytes) -> None:
        num_lines = block.count(b"\n")
        self.num_blank += num_lines
        self.line += num_lines
        self.rest = block[block.rfind(b"\n") + 1 :]

    def _add(self, chunk: Chunk, record: bytes) -> None:
        record = record.strip()
        if not record:
            self.num_blank += 1
            return
        self._end_blanks(chunk)
        chunk.add(self.line, record)

    def _end_blanks(self, chunk: Chunk) -> None:
        if not self.num_blank:
            return
        what = "a line with nothing on it"
        if self.num_blank > 1:
            what = f"{self.num_blank:,} lines with nothing on them"
        chunk.report(self.line - self.num_blank, "blank_line", what, "skipped")
        self.num_blank = 0


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


def _read_table(path: Path, raw: BinaryIO, content: Content) -> Iterator[Chunk]:
    # Only tables need pyarrow, and importing it takes longer than all the rest together.
    from hunyuan_train.data.reading.tables import read_rows  # noqa: PLC0415

    yield from _say_content(path, content)
    row = 1
    for records, problems in read_rows(raw, content):
        chunk = Chunk(str(path), problems=[(row, problem) for problem in problems])
        for record in records:
            chunk.add(row, record)
            row += 1
        yield chunk
