"""Read a checkpoint as if it were one whole model, however many ranks wrote it.

Every rank's file holds flat ranges of parameters. Seen as ranges of released tensors they no longer
depend on how the writers split the model, so that readers may split it differently.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.families.family import Family
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.families.tensors import StoredTensor, pieces_of_range
from hunyuan_train.model.safetensors_files import DTYPES, read_range
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.optim.blockwise_states import code_range, decode_range, scales_name
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, num_blocks
from hunyuan_train.plain_text import make_plain_name


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, stop) of a released tensor, and where in a rank's file they lie."""

    start: int
    stop: int
    name: str  # of the tensor in the rank's file
    location: TensorLocation
    offset: int  # of `start` within the location
    scales: TensorLocation | None  # of the blocks of a coded state

    @property
    def byte_offset(self) -> int:
        """Where its first element lies in the file, if it is not coded."""
        return self.location.byte_offset + self.offset * self.location.itemsize

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the released tensor: [stop - start], float32 if coded."""
        first, last = (self.offset + one - self.start for one in (start, stop))
        if self.scales is None:
            return read_range(self.location, first, last)
        codes = read_range(self.location, *code_range(DTYPES[self.location.dtype], first, last))
        scales = read_range(self.scales, first // LEAN_BLOCK, num_blocks(last))
        return decode_range(codes, scales, first, last)


class CheckpointTensors:
    """One kind of state (master weights, exp_avg, ...) of a whole checkpoint; a `WeightSource`."""

    def __init__(
        self, folder: Path, tensors: dict[str, StoredTensor], fragments: dict[str, list[Fragment]]
    ) -> None:
        self.folder = folder
        self.tensors = tensors  # all that the checkpoint holds something of, by name
        self.fragments = fragments

    @property
    def files(self) -> list[Path]:
        """The files of all ranks that hold something of it."""
        found = {one.location.file for parts in self.fragments.values() for one in parts}
        return sorted(found)

    def check_whole(self) -> None:
        """Check that the ranks' parts of every tensor make the whole of it.

        Raises:
            CheckpointError: some of one is missing, or there twice.
        """
        for name, parts in self.fragments.items():
            position = 0
            for part in sorted(parts, key=lambda one: one.start):
                if part.start != position:
                    break
                position = part.stop
            if position != self.tensors[name].numel:
                num_found = sum(part.stop - part.start for part in parts)
                raise CheckpointError(
                    f"{self.folder} holds {num_found} of {self.tensors[name].numel} elements of "
                    f"{name}, not each of them once; it is damaged, take another checkpoint"
                )

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], float32.

        Raises:
            CheckpointError: the checkpoint does not hold all of them.
        """
        fragments = self.fragments.get(tensor.name, ())
        for fragment in fragments:  # mostly one holds them all, and nothing is copied
            if fragment.start <= start < stop <= fragment.stop:
                return fragment.read(start, stop).float()
        values = torch.empty(stop - start, dtype=torch.float32)
        num_found = 0
        for fragment in fragments:
            first, last = max(start, fragment.start), min(stop, fragment.stop)
            if first < last:
                values[first - start : last - start] = fragment.read(first, last)
                num_found += last - first
        if num_found != stop - start:
            raise CheckpointError(
                f"{self.folder} holds {num_found} of {stop - start} elements of {tensor.name}; it "
                "is of another model, or trained other parameters"
            )
        return values


def open_tensors(
    folder: Path, manifest: Mapping[str, Any], family: Family
) -> dict[str, CheckpointTensors]:
    """Index a checkpoint of a model of this family: its states by kind, to be read in any split.

    Raises:
        CheckpointError: a file is damaged, or does not hold what the manifest says.
    """
    tensors: dict[str, StoredTensor] = {}
    fragments: dict[str, dict[str, list[Fragment]]] = {
        kind: defaultdict(list) for kind in manifest["kinds"]
    }
    for file_name, entry in manifest["files"].items():
        try:
            locations = read_header(folder / file_name)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / file_name} cannot be used: {error}") from error
        for name, numbers in entry["ranges"].items():
            _check_range(folder / file_name, name, numbers, kinds=fragments, locations=locations)
            first_expert, start, stop, *shape = numbers
            stored = stored_tensors(family, name, tuple(shape), first_expert=first_expert)
            for piece in pieces_of_range(stored, start, stop):
                tensors[piece.tensor.name] = piece.tensor
                for kind, found in fragments.items():
                    state = f"{kind}:{name}"
                    fragment = Fragment(
                        piece.start,
                        piece.stop,
                        state,
                        locations[state],
                        piece.offset,
                        locations.get(scales_name(state)),
                    )
                    found[piece.tensor.name].append(fragment)
    return {kind: CheckpointTensors(folder, tensors, found) for kind, found in fragments.items()}


def _check_range(
    file: Path,
    name: str,
    numbers: Sequence[int],
    *,
    kinds: Iterable[str],
    locations: Mapping[str, TensorLocation],
) -> None:
    """Check that a rank's file holds the range of a parameter that the manifest says.

    Args:
        file: of the rank.
        name: of the parameter.
        numbers: first expert, start, stop, and the parameter's shape.
        kinds: of states.
        locations: of all tensors in the file.

    Raises:
        CheckpointError: it does not.
    """
    num_elements = numbers[2] - numbers[1]
    sizes = {_num_elements(locations, f"{kind}:{name}", num_elements) for kind in kinds}
    if sizes != {num_elements}:
        raise CheckpointError(
            f"{file} does not hold what its manifest says of {make_plain_name(name)}; it was made "
            "by something else than a run: take another checkpoint"
        )


def _num_elements(locations: Mapping[str, TensorLocation], name: str, size: int) -> int | None:
    """Elements of a state; of a coded one `size`, if there are so many codes."""
    location = locations.get(name)
    if location is None:
        return None
    if scales_name(name) not in locations:
        return prod(location.shape)
    num_codes = code_range(DTYPES[location.dtype], 0, size)[1]
    return size if prod(location.shape) == num_codes else None
