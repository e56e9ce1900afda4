"""Where the tensors of a safetensors file lie, read from its header without torch.

A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes. Format:
https://huggingface.co/docs/safetensors. The bytes themselves are `safetensors_files.py`'s business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

# Bytes of an element, for the dtypes that models and checkpoints here are made of.
ITEMSIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


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


def largest(locations: Mapping[str, TensorLocation]) -> TensorLocation:
    """Where the largest of some tensors lies."""
    return max(locations.values(), key=lambda one: one.num_bytes)


def read_header(file: Path) -> dict[str, TensorLocation]:
    """Locate every tensor of a file.

    Raises:
        ValueError: not a safetensors file, cut short, or a dtype that no model or checkpoint has.
    """
    file_size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_size <= min(file_size - 8, MAX_HEADER_BYTES):
            raise ValueError("it has no safetensors header")
        try:
            header = json.loads(stream.read(header_size))
            header.pop("__metadata__", None)
            data_start = 8 + header_size
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            locations = {name: _locate(file, data_start, header[name], name) for name in header}
        except (KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError) as error:
            raise ValueError("its safetensors header is damaged") from error
    if data_start + end > file_size:
        raise ValueError(f"{data_start + end - file_size} bytes are missing at its end")
    return locations


def _locate(file: Path, data_start: int, entry: dict[str, Any], name: str) -> TensorLocation:
    """Read one tensor's entry.

    Raises:
        ValueError: an unknown dtype, or a size that the shape does not have.
    """
    if entry["dtype"] not in ITEMSIZES:
        known = ", ".join(ITEMSIZES)
        raise ValueError(f"{name} has dtype {entry['dtype']}, which is none of {known}")
    start, stop = entry["data_offsets"]
    location = TensorLocation(file, data_start + start, entry["dtype"], tuple(entry["shape"]))
    if stop - start != location.num_bytes or start < 0:
        raise ValueError(
            f"{name} has {stop - start} bytes, and as {location.dtype} of shape "
            f"{list(location.shape)} needs {location.num_bytes}"
        )
    return location
