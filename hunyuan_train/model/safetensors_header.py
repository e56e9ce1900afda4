"""Where the tensors of a safetensors file lie, read from its header without torch.

A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes. Format:
https://huggingface.co/docs/safetensors. The bytes themselves are `safetensors_files.py`'s business.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hunyuan_train.json_file import open_regular_file, parse_json
from hunyuan_train.plain_text import make_plain_name

# Bytes of an element, for the dtypes that models and checkpoints here are made of.
ITEMSIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
ITEMSIZES |= {"F8_E4M3": 1, "I32": 4, "I64": 8}  # of compressed weights
# The library takes six times as much, which Python reads for most of a minute. Eighty thousand
# tensors fit, and the released model has 6,500.
MAX_HEADER_BYTES = 2**24
MAX_SIZE = 2**64  # sizes are counted in 64 bits
FIELDS = ("dtype", "shape", "data_offsets")  # of an entry


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where the bytes of one tensor lie."""

    file: Path
    byte_offset: int  # of its first element in the file
    dtype: str  # by its name in the format, a key of `ITEMSIZES`
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Size of the whole tensor."""
        return prod(self.shape) * self.itemsize

    def byte_of(self, element: int) -> int:
        """Where in the file an element lies, counted in the flattened tensor."""
        return self.byte_offset + element * self.itemsize


def largest(locations: Mapping[str, TensorLocation]) -> TensorLocation:
    """Where the largest of some tensors lies."""
    return max(locations.values(), key=lambda one: one.num_bytes)


def read_header(file: Path) -> dict[str, TensorLocation]:
    """Locate every tensor of a file, by the rules of the safetensors library.

    Raises:
        OSError: it cannot be read.
        ValueError: not a safetensors file, cut short, tensors that overlap or leave holes, or a
            dtype that no model or checkpoint has.
    """
    with open_regular_file(file) as stream:
        file_size = os.fstat(stream.fileno()).st_size
        header_size = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_size <= file_size - 8:
            raise ValueError("it has no safetensors header")
        if header_size > MAX_HEADER_BYTES:
            raise ValueError(
                f"its header takes {header_size:,} bytes, and those of models take "
                f"{MAX_HEADER_BYTES:,} at most"
            )
        encoded = stream.read(header_size)
    data_start = 8 + header_size
    locations = {
        name: _locate(file, data_start, entry, name)
        for name, entry in _parse_header(encoded).items()
    }
    _check_layout(locations, data_start, file_size)
    return locations


def _parse_header(encoded: bytes) -> dict[str, Any]:
    """The entries of all tensors by name.

    Raises:
        ValueError: no JSON object, or metadata that are not words.
    """
    try:
        header = parse_json(encoded)
        if not isinstance(header, dict):
            raise ValueError("it holds no JSON object")
        "".join(header).encode()  # a lone surrogate is no text
    except ValueError as error:
        raise ValueError(f"its safetensors header is damaged ({error})") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its safetensors header is damaged (__metadata__ must hold words)")
    return header


def _locate(file: Path, data_start: int, entry: object, name: str) -> TensorLocation:
    """Read one tensor's entry.

    Raises:
        ValueError: another form, an unknown dtype, or a size that the shape does not have.
    """
    shown = make_plain_name(name)
    if not isinstance(entry, dict) or entry.keys() != set(FIELDS):
        raise ValueError(f"its safetensors header is damaged ({shown} needs {', '.join(FIELDS)})")
    dtype, shape, offsets = (entry[field] for field in FIELDS)
    if not isinstance(dtype, str) or dtype not in ITEMSIZES:
        known = ", ".join(ITEMSIZES)
        raise ValueError(f"{shown} has dtype {make_plain_name(dtype)}, which is none of {known}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(
            f"its safetensors header is damaged (shape and offsets of {shown} must be whole "
            "numbers)"
        )
    needed = _num_bytes(shape, ITEMSIZES[dtype])
    start, stop = offsets
    if stop - start != needed:
        raise ValueError(
            f"{shown} has {stop - start} bytes, and as {dtype} of shape {make_plain_name(shape)} "
            f"needs {'more than any file holds' if needed is None else needed}"
        )
    return TensorLocation(file, data_start + start, dtype, tuple(shape))


def _are_sizes(values: object) -> bool:
    """Whether these are whole numbers as the format has them: neither true nor 1.0."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < MAX_SIZE for value in values
    )


def _num_bytes(shape: list[int], itemsize: int) -> int | None:
    """Bytes of a tensor; None beyond what the format can count, where products never end."""
    num_bytes = itemsize
    for size in shape:
        num_bytes *= size
        if num_bytes >= MAX_SIZE:
            return None
    return num_bytes


def _check_layout(locations: Mapping[str, TensorLocation], data_start: int, file_size: int) -> None:
    """Check that tensors lie end to end from the header to the end of the file.

    Raises:
        ValueError: naming the first that does not.
    """
    position, before = data_start, "the header"
    ordered = sorted(locations.items(), key=lambda one: (one[1].byte_offset, one[1].num_bytes))
    for name, location in ordered:
        if location.byte_offset < position:
            raise ValueError(f"{make_plain_name(name)} overlaps {before}")
        if location.byte_offset > position:
            num_lost = location.byte_offset - position
            raise ValueError(f"{num_lost} bytes before {make_plain_name(name)} belong to no tensor")
        position, before = location.byte_offset + location.num_bytes, make_plain_name(name)
    if position > file_size:
        raise ValueError(f"{position - file_size} bytes are missing at its end")
    if position < file_size:
        raise ValueError(f"{file_size - position} bytes behind {before} belong to no tensor")
