"""The bytes inside a compressed file, a little at a time, however much stands behind each byte."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import zstandard

from hunyuan_train.data.reading.contents import Content

_INPUT_BYTES = 1 << 16  # compressed bytes read at once
# 4 bytes of zstandard may stand for 128 KiB, and its library gives all that comes of an input in
# one piece: 32 MiB of these at most.
_ZST_INPUT_BYTES = 1 << 10
_XZ_MEMORY = 256 << 20  # what a file may ask for; its largest preset takes 65 MB

# Dialogues shrink about tenfold. Beyond these a file is no text but a bomb, and would take hours.
MAX_EXPANSION = 1000
MIN_BOMB_BYTES = 256 << 20  # below this nothing is refused: a repetitive file may shrink a lot

DAMAGED = (gzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError)


class CompressionError(ValueError):
    """Compressed data that ends too early, or that expands without measure."""


class Readable(Protocol):
    """A file that is read from its start to its end."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""

    def tell(self) -> int:
        """How far it was read."""


_Stream = bz2.BZ2Decompressor | lzma.LZMADecompressor


def decompress(raw: Readable, content: Content, block_bytes: int) -> Iterator[bytes]:
    """The uncompressed bytes of a file, in blocks of this size.

    Raises:
        CompressionError: the file ends too early, or expands more than a thousandfold.
        OSError, EOFError, zlib.error: it is damaged, and those of `DAMAGED`.
    """
    readers: dict[Content, Callable[[], Iterator[bytes]]] = {
        "gzip": lambda: _read_file(gzip.GzipFile(fileobj=cast(Any, raw)), block_bytes),
        "zstandard": lambda: _read_zstandard(raw),
        "bzip2": lambda: _read_streams(raw, bz2.BZ2Decompressor, block_bytes),
        "xz": lambda: _read_streams(raw, _open_xz, block_bytes),
    }
    yield from _even_out(_refuse_bombs(raw, readers[content]()), block_bytes)


def _read_file(file: gzip.GzipFile, block_bytes: int) -> Iterator[bytes]:
    while block := file.read(block_bytes):
        yield block


def _open_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _read_streams(
    raw: Readable, open_stream: Callable[[], _Stream], block_bytes: int
) -> Iterator[bytes]:
    """Streams end to end, with zeros between them, as these formats allow."""
    stream, is_open = open_stream(), False
    while block := raw.read(_INPUT_BYTES):
        while True:
            if not is_open:
                block = block.lstrip(b"\0")
            if not block and stream.needs_input:
                break
            is_open = True
            yield stream.decompress(block, block_bytes)
            block = b""
            if stream.eof:
                block = stream.unused_data
                stream, is_open = open_stream(), False
    if is_open:
        raise CompressionError("the compressed data ends too early")


def _read_zstandard(raw: Readable) -> Iterator[bytes]:
    # Not stream_reader: that one takes a file cut off between two blocks for a whole one.
    frame = zstandard.ZstdDecompressor().decompressobj()
    is_open = False
    while block := raw.read(_ZST_INPUT_BYTES):
        while block:
            is_open = True
            yield frame.decompress(block)
            block = b""
            if frame.eof:
                block, is_open = frame.unused_data, False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if is_open:
        raise CompressionError("the compressed data ends too early")


def _refuse_bombs(raw: Readable, pieces: Iterator[bytes]) -> Iterator[bytes]:
    num_bytes = 0
    for piece in pieces:
        num_bytes += len(piece)
        if num_bytes > max(MIN_BOMB_BYTES, MAX_EXPANSION * raw.tell()):
            raise CompressionError(
                f"{raw.tell():,} bytes expand to more than {num_bytes:,}, which no text does; "
                "unpack it yourself if this is meant"
            )
        yield piece


def _even_out(pieces: Iterator[bytes], block_bytes: int) -> Iterator[bytes]:
    """The same bytes in blocks of one size: pieces may be of a few bytes or of 32 MiB."""
    waiting: list[bytes] = []
    num_waiting = 0
    for piece in pieces:
        waiting.append(piece)
        num_waiting += len(piece)
        if num_waiting >= block_bytes:
            joined = b"".join(waiting)
            whole = num_waiting - num_waiting % block_bytes
            for start in range(0, whole, block_bytes):
                yield joined[start : start + block_bytes]
            waiting, num_waiting = [joined[whole:]], num_waiting - whole
    if num_waiting:
        yield b"".join(waiting)
