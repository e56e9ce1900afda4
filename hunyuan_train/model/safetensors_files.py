"""The bytes of safetensors files, read and written in ranges instead of whole tensors.

The library reads whole tensors or rows; ranks here own flat ranges that begin and end anywhere.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from hunyuan_train.model.safetensors_header import TensorLocation
from hunyuan_train.past_cache import write_cached

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
    "I64": torch.int64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def create_file(file: Path, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Write the header and reserve room for the tensors, whose bytes are written later."""
    size = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in tensors.values())
    header = create_header(tensors)
    with file.open("wb") as stream:
        stream.write(header.numpy().data)
        stream.truncate(len(header) + size)


def create_header(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> Tensor:
    """All that stands in a file before the bytes of its tensors, which lie in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        offsets = [position, position + size]
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": offsets}
        position += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    content = len(encoded).to_bytes(8, "little") + encoded
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def read_range(location: TensorLocation, start: int, stop: int) -> Tensor:
    """Read elements [start, stop) of the flattened tensor: [stop - start], in its stored dtype.

    Raises:
        ValueError: the file ends inside the range.
    """
    values = torch.empty(stop - start, dtype=DTYPES[location.dtype])
    target, num_read = memoryview(values.view(torch.uint8).numpy().data), 0
    with location.file.open("rb", buffering=0) as file:
        file.seek(location.byte_of(start))
        while num_read < len(target):
            received = file.readinto(target[num_read:])
            if not received:
                raise ValueError("the file ends early")
            num_read += received
    return values


def write_range(location: TensorLocation, start: int, values: Tensor) -> memoryview:
    """Write values over elements [start, start + len(values)) of the flattened tensor.

    Returns:
        the bytes that were written.
    """
    stored = values.detach().to("cpu", DTYPES[location.dtype]).contiguous()
    content = bytes_of(stored)
    descriptor = os.open(location.file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        write_cached(descriptor, content, location.byte_of(start))
    finally:
        os.close(descriptor)
    return content


def bytes_of(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory, which stay its own."""
    content: memoryview = values.detach().flatten().view(torch.uint8).numpy().data
    return content
