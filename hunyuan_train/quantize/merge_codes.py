"""Merge an adapter into a quantised base: its codes change, its scales and its layout stay.

Most changes of a fine-tune are smaller than half a step between two codes, and rounding to nearest
would undo all of these. So a code moves to its neighbour with a probability that is the change's
share of the step (stochastic rounding): what the adapter adds is there on average. How much of the
fine-tune that keeps is measured (`merge_command.py`).
"""

import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.export.lora_deltas import Merge
from hunyuan_train.export.merge import ChangedWeights
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.compressed_values import (
    FLOAT8_MAX,
    INT4_MIN,
    INT4_RANGE,
    pack_int4,
    round_to_float8,
    spread_scales,
    unpack_int4,
)
from hunyuan_train.model.compressed_weights import CompressedFolder
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.safetensors_files import write_range
from hunyuan_train.model.weights import is_finite
from hunyuan_train.progress import show_progress


def open_changed(merge: Merge) -> tuple[CompressedFolder, ChangedWeights]:
    """A quantised base, and the base with the adapter beside it, as it was trained."""
    base = CompressedFolder(merge.weights, Scheme.titled(merge.shape.stored_as))
    return base, ChangedWeights(base, merge.changes)


def write_merged(merge: Merge, folder: Path) -> None:
    """Copy the base's weight files and change the codes that the adapter changes.

    Args:
        merge: of a quantised base.
        folder: empty.

    Raises:
        CheckpointError: a merged weight is not finite.
    """
    base, changed = open_changed(merge)
    known = released_tensors(merge.shape)
    files = sorted({location.file for location in merge.weights.values()})
    for file in files:
        shutil.copyfile(file, folder / file.name)
    size = sum(known[name].numel for name in merge.changes)
    with show_progress("merging into codes", size) as advance:
        for name in merge.changes:
            tensor = known[name]
            after = changed.read(tensor, 0, tensor.numel).float()
            if not is_finite(after):
                raise CheckpointError(
                    f"{name} holds NaN or infinity once merged; the adapter or the base is damaged"
                )
            stored = name
            if name in base.compressed:
                change = after - base.read(tensor, 0, tensor.numel).float()
                codes, scales = base.read_codes(tensor, 0, tensor.shape[0])
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                after = move_codes(codes, scales, change.view(tensor.shape), base.scheme, generator)
                after = after.T if base.scheme.packing else after  # GPTQ's files are transposed
                stored = next(iter(base.scheme.stored(tensor, "")))
            location = merge.weights[stored]
            write_range(replace(location, file=folder / location.file.name), 0, after.contiguous())
            advance(tensor.numel)


def move_codes(
    codes: Tensor, scales: Tensor, change: Tensor, scheme: Scheme, generator: torch.Generator
) -> Tensor:
    """Add a change to what codes mean, by stochastic rounding to the steps that they have.

    Args:
        codes: of a whole weight, as `decode` takes them; FP8 or four-bit whole numbers.
        scales: of it.
        change: [rows, columns], float32.
        scheme: how the weight is compressed.
        generator: decides which codes move; the same seed gives the same codes.

    Returns:
        codes, of the same form.
    """
    steps = change / spread_scales(scales, change.shape, scheme)
    chance = torch.rand(change.shape, generator=generator)
    if scheme.is_4bit:
        wanted = unpack_int4(codes).float() + steps
        wanted = wanted.clamp(INT4_MIN, INT4_MIN + INT4_RANGE)
        lower = wanted.floor()
        return pack_int4(lower + (chance < wanted - lower))
    wanted = (codes.float() + steps).clamp(-FLOAT8_MAX, FLOAT8_MAX)
    nearest = round_to_float8(wanted)
    is_beyond = wanted.abs() > nearest.float().abs()
    # A sign and seven bits of size: the next larger or smaller size is one code on.
    other = nearest.view(torch.uint8) + torch.where(is_beyond, 1, -1).to(torch.uint8)
    other = torch.where(wanted == nearest.float(), nearest.view(torch.uint8), other)
    neighbour = other.view(nearest.dtype).float()
    width = (neighbour - nearest.float()).abs()
    share = (wanted - nearest.float()).abs() / torch.where(width == 0, 1, width)
    moved = torch.where(chance < share, other, nearest.view(torch.uint8))
    return moved.view(nearest.dtype)
