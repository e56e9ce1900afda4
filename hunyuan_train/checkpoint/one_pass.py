"""Read one kind of state of a whole checkpoint once, and sum every byte on the way.

Each tensor of a rank's file has a checksum in the manifest. So what is wanted is read once, a bit
that has flipped is found in the pass that reads it, and nothing else is read. Files of earlier
versions have one checksum each: of them every byte is read. What was handed out before the end may
be damaged: publish nothing until all are through.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import SUM, TENSOR_SUMS
from hunyuan_train.checkpoint.resharding import CheckpointTensors, Fragment
from hunyuan_train.checkpoint.verify import ALGORITHMS, recorded_sum
from hunyuan_train.families.tensors import Piece, StoredTensor
from hunyuan_train.model.safetensors_files import DTYPES

PIECE_BYTES = 2**22  # read, summed, converted and written before it has left a core's cache
Advance = Callable[[int], None]


class SummedFile:
    """A part of a file that is read from its first byte to its last, and summed."""

    def __init__(self, file: FileIO, position: int, algorithm: str, advance: Advance) -> None:
        self.file = file
        self.position = file.seek(position)
        self.digest = ALGORITHMS[algorithm]()
        self.advance = advance
        self.buffer = np.empty(PIECE_BYTES, np.uint8)

    def read(self, size: int) -> memoryview:
        """The next bytes, no more than a piece; they are good until the next ones are read.

        Raises:
            ValueError: the file ends before.
        """
        target = self.buffer[:size].data
        num_read = 0
        while num_read < size:
            received = self.file.readinto(target[num_read:])
            if not received:
                raise ValueError("the file ends early")
            num_read += received
        self.digest.update(target)
        self.position += size
        self.advance(size)
        return target

    def skip_to(self, position: int) -> None:
        """Sum what lies before a position."""
        while self.position < position:
            self.read(min(PIECE_BYTES, position - self.position))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [start, stop) of a rank's file, with a checksum of their own."""

    file: Path
    start: int
    stop: int
    algorithm: str
    sum: str
    fragments: list[tuple[StoredTensor, Fragment]]  # what is wanted of them, in their order

    def read(self, advance: Advance) -> Iterator[tuple[Piece, Tensor]]:
        """All that is wanted, in small pieces.

        Args:
            advance: told the bytes that are read.

        Yields:
            which part of a released tensor, and its values, flat, in the dtype in which they are
            kept; they are good until the next.

        Raises:
            CheckpointError: at its end, or before: the file is not what was written.
        """
        try:
            with self.file.open("rb", buffering=0) as opened:
                source = SummedFile(opened, self.start, self.algorithm, advance)
                for tensor, fragment in self.fragments:
                    yield from _read_fragment(source, tensor, fragment)
                source.skip_to(self.stop)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file} cannot be read: {error}") from error
        if source.digest.hexdigest() != self.sum:
            raise CheckpointError(
                f"{self.file} is not what was written: its checksum differs; take another "
                "checkpoint, or bring a good copy of the file back"
            )


def plan_stretches(trained: CheckpointTensors, manifest: Mapping[str, Any]) -> list[Stretch]:
    """What is read of a checkpoint for one kind of state, which no piece of it shares.

    Args:
        trained: the kind; not one that is kept as codes.
        manifest: of the checkpoint.
    """
    by_name: defaultdict[tuple[Path, str], list[tuple[StoredTensor, Fragment]]] = defaultdict(list)
    for name, fragments in trained.fragments.items():
        for one in fragments:
            by_name[one.location.file, one.name].append((trained.tensors[name], one))
    by_file: defaultdict[Path, list[tuple[StoredTensor, Fragment]]] = defaultdict(list)
    stretches = []
    for (file, name), found in by_name.items():
        found.sort(key=lambda one: one[1].byte_offset)
        sums = manifest["files"][file.name].get(TENSOR_SUMS, {})
        if name not in sums:
            by_file[file] += found
            continue
        location = found[0][1].location
        end = location.byte_offset + location.num_bytes
        stretches.append(Stretch(file, location.byte_offset, end, SUM, sums[name], found))
    for file, found in by_file.items():
        found.sort(key=lambda one: one[1].byte_offset)
        entry = manifest["files"][file.name]
        stretches.append(Stretch(file, 0, entry["size"], *recorded_sum(entry), found))
    return stretches


def _read_fragment(
    source: SummedFile, tensor: StoredTensor, fragment: Fragment
) -> Iterator[tuple[Piece, Tensor]]:
    assert fragment.scales is None, "codes cannot be read without their scales"
    source.skip_to(fragment.byte_offset)
    itemsize, dtype = fragment.location.itemsize, DTYPES[fragment.location.dtype]
    step = PIECE_BYTES // itemsize
    for start in range(fragment.start, fragment.stop, step):
        stop = min(start + step, fragment.stop)
        content = source.read((stop - start) * itemsize)
        yield Piece(tensor, start, stop, 0), torch.frombuffer(content, dtype=dtype)
