"""Read a checkpoint as if it were one whole model, however many ranks wrote it.

Every rank's file holds flat ranges of parameters. Seen as ranges of released tensors they no longer
depend on how the writers split the model, so that readers may split it differently.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, stop) of a released tensor, and where in a rank's file they lie."""

    start: int
    stop: int
    location: TensorLocation
    offset: int  # of `start` within the location
    scales: TensorLocation | None  # of the blocks of a coded state

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

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], float32.

        Raises:
            CheckpointError: the checkpoint does not hold all of them.
        """
        values = torch.empty(stop - start, dtype=torch.float32)
        num_found = 0
        for fragment in self.fragments.get(tensor.name, ()):
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
    """Index a checkpoint of a model of this family: its states by kind, to be read in any split."""
    tensors: dict[str, StoredTensor] = {}
    fragments: dict[str, dict[str, list[Fragment]]] = {
        kind: defaultdict(list) for kind in manifest["kinds"]
    }
    for file_name, entry in manifest["files"].items():
        try:
            locations = read_header(folder / file_name)
        except ValueError as error:
            raise CheckpointError(f"{folder / file_name} cannot be used: {error}") from error
        for name, (first_expert, start, stop, *shape) in entry["ranges"].items():
            stored = stored_tensors(family, name, tuple(shape), first_expert=first_expert)
            for piece in pieces_of_range(stored, start, stop):
                tensors[piece.tensor.name] = piece.tensor
                for kind, found in fragments.items():
                    location = locations[f"{kind}:{name}"]
                    scales = locations.get(scales_name(f"{kind}:{name}"))
                    fragment = Fragment(piece.start, piece.stop, location, piece.offset, scales)
                    found[piece.tensor.name].append(fragment)
    return {kind: CheckpointTensors(folder, tensors, found) for kind, found in fragments.items()}
