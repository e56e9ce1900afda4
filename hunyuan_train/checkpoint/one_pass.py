"""Read one kind of state of a whole checkpoint once, and sum every byte on the way.

Each rank's file is read from its first byte to its last, and its checksum compared with the
manifest's at the end. So nothing is read twice, and a bit that has flipped is found in the pass
that reads it. What was handed out before may be damaged: publish nothing until all are through.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import DIGEST
from hunyuan_train.checkpoint.resharding import CheckpointTensors, Fragment
from hunyuan_train.families.tensors import Piece, StoredTensor
from hunyuan_train.model.safetensors_files import DTYPES

PIECE_BYTES = 2**24


class SummedFile:
    """A file that is read from its first byte to its last, and summed."""

    def __init__(self, file: FileIO, advance: Callable[[int], None]) -> None:
        self.file = file
        self.advance = advance
        self.digest = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> memoryview:
        """The next bytes.

        Raises:
            ValueError: the file ends before.
        """
        target = memoryview(bytearray(size))
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


def read_pieces(
    trained: CheckpointTensors,
    manifest: Mapping[str, Any],
    file: Path,
    advance: Callable[[int], None],
) -> Iterator[tuple[Piece, Tensor]]:
    """Everything that one rank's file holds of a kind of state, in small pieces.

    Args:
        trained: the kind; not one that is kept as codes.
        manifest: of the checkpoint.
        file: of a rank.
        advance: told the bytes that are read.

    Yields:
        which part of a released tensor, and its values, flat, in the dtype in which they are kept.

    Raises:
        CheckpointError: at its end, or before: the file is not what was written.
    """
    entry = manifest["files"][file.name]
    try:
        with file.open("rb", buffering=0) as opened:
            source = SummedFile(opened, advance)
            for name, fragment in _in_file_order(trained, file):
                yield from _read_fragment(source, trained.tensors[name], fragment)
            source.skip_to(entry["size"])
            is_whole = not opened.read(1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not is_whole or source.digest.hexdigest() != entry[DIGEST]:
        raise CheckpointError(
            f"{file} is not what was written: its checksum differs; take another checkpoint, or "
            "bring a good copy of the file back"
        )


def _in_file_order(trained: CheckpointTensors, file: Path) -> list[tuple[str, Fragment]]:
    """The parts of all tensors that lie in a file, with the tensors' names."""
    found = [
        (name, fragment)
        for name, fragments in trained.fragments.items()
        for fragment in fragments
        if fragment.location.file == file
    ]
    return sorted(found, key=lambda one: one[1].byte_offset)


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
