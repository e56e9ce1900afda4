"""The folder that servers load: the released layout, and all of it but the values of the weights.

The layout is known before a weight is. So the files are created first, headers written and room
reserved, and whoever has a range of a tensor writes it into its place, in any order.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import check_room, num_threads
from hunyuan_train.checkpoint.read_back import WrittenParts
from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.schema import LoraConfig, RunConfig
from hunyuan_train.export.companions import copy_files, list_companions
from hunyuan_train.export.manifest import write_adapter_manifest, write_manifest
from hunyuan_train.export.peft_layout import peft_description, peft_tensors
from hunyuan_train.export.served_config import (
    complete_generation_config,
    read_config,
    write_config,
    write_json,
)
from hunyuan_train.export.served_tokenizer import complete_tokenizer
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import Piece, StoredTensor
from hunyuan_train.model.base_folder import identify_weights
from hunyuan_train.model.released_files import check_generation_config
from hunyuan_train.model.safetensors_files import DTYPES, bytes_of, create_file, write_range
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.model.weights import WeightSource, downloaded_part, is_finite
from hunyuan_train.past_cache import PastCache

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 5 * 10**9
HEADER_BYTES = 2**20  # kept free for a file's header, which takes 0.1 MB at the released size
PIECE_ELEMENTS = 2**20  # 4 MB in float32: converted, summed and written while in a core's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """Everything about a released folder but its weights' values."""

    shape: ModelShape
    dtype: torch.dtype  # of all weights but those that are always float32
    # Folders to take other files from, of which later ones win; the last one is the tokenizer's.
    companions: tuple[Path, ...] = ()
    base: Path | None = None  # the folder of the model that was trained, where it has one
    add_tokens: str | None = None  # the setting: a file of tokens that the run has added


def describe_release(config: RunConfig, shape: ModelShape, source: WeightSource) -> Release:
    """What a run's model is released as: in the dtype it came in, presets in the trained one."""
    name = config.model.model_name_or_path
    dtype = trained_dtype(config)
    if downloaded := downloaded_part(source):
        dtype = downloaded.dtype
    base = None if name in PRESETS else Path(name)
    companions = (*([base] if base else []), tokenizer_folder(config.model))
    return Release(
        shape=shape,
        dtype=dtype,
        companions=companions,
        base=base,
        add_tokens=config.model.add_tokens,
    )


def trained_dtype(config: RunConfig) -> torch.dtype:
    """What a run computes in; its adapters are written so too."""
    return torch.bfloat16 if config.train.bf16 is True else torch.float32


def create_release(folder: Path, release: Release) -> None:
    """Write everything but the values of the weights into an empty folder."""
    create_weight_files(folder, release)
    for source in release.companions:
        check_generation_config(source, release.shape)
        copy_files(list_companions(source), folder)
    words = None
    if release.companions:
        words = load_tokenizer(release.companions[-1], release.add_tokens)
    base = {}
    if release.base:
        base = read_config(release.base)
        write_manifest(folder, release.base)
    complete_files(folder, release.shape, release.dtype, base=base, words=words)
    if release.shape.num_mtp_layers and not release.shape.leaves_out_mtp:
        logger.info(
            "the layer for multi-token prediction is exported as it came, and was not tuned: "
            "servers that decode with it give right answers and may accept fewer of its tokens"
        )


def complete_files(
    folder: Path,
    shape: ModelShape,
    dtype: torch.dtype,
    *,
    base: Mapping[str, Any],
    words: Tokenizer | None,
) -> None:
    """Write what clients read beside the weights, over the files that came along from the base.

    Args:
        folder: to be published.
        shape: of the model.
        dtype: of its weights but those that are always float32.
        base: config.json of the model that was trained; empty for a preset.
        words: the tokenizer whose files the folder holds, if any.
    """
    write_config(folder, shape, dtype, base=base)
    complete_generation_config(folder, shape)
    if words is not None:
        complete_tokenizer(folder, words, shape)


def create_weight_files(folder: Path, release: Release) -> None:
    """Write the headers of all weight files, room for their tensors, and the index."""
    files = split_into_files(list(released_tensors(release.shape).values()), release.dtype)
    total = sum(stored_bytes(tensor, release.dtype) for file in files for tensor in file)
    check_room(folder, total)
    weight_map: dict[str, str] = {}
    for index, tensors in enumerate(files):
        name = f"model-{index + 1:05d}-of-{len(files):05d}.safetensors"
        create_file(
            folder / name,
            {one.name: (stored_dtype(one, release.dtype), one.shape) for one in tensors},
        )
        weight_map |= {tensor.name: name for tensor in tensors}
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index_file)


def stored_dtype(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    """Some tensors are released in float32, everything else in the model's dtype."""
    return torch.float32 if tensor.is_float32 else dtype


def stored_bytes(tensor: StoredTensor, dtype: torch.dtype) -> int:
    """Size of a tensor in a file of a model of this dtype."""
    return tensor.numel * stored_dtype(tensor, dtype).itemsize


def split_into_files(tensors: list[StoredTensor], dtype: torch.dtype) -> list[list[StoredTensor]]:
    """Deal tensors, in order, into files of at most `MAX_FILE_BYTES`; a larger one stands alone."""
    files: list[list[StoredTensor]] = [[]]
    file_bytes = HEADER_BYTES
    for tensor in tensors:
        size = stored_bytes(tensor, dtype)
        if files[-1] and file_bytes + size > MAX_FILE_BYTES:
            files.append([])
            file_bytes = HEADER_BYTES
        files[-1].append(tensor)
        file_bytes += size
    return files


def read_locations(folder: Path) -> dict[str, TensorLocation]:
    """Where each tensor of a created folder lies."""
    locations: dict[str, TensorLocation] = {}
    for file in sorted(folder.glob("*.safetensors")):
        locations |= read_header(file)
    return locations


def write_weights(
    source: WeightSource,
    locations: dict[str, TensorLocation],
    advance: Callable[[int], None],
    written: WrittenParts | None = None,
) -> None:
    """Copy a whole model from a source into a created folder, in small pieces and several threads.

    Args:
        source: of every released tensor.
        locations: of the created folder.
        advance: told the bytes of each piece that is written.
        written: learns what is written, where somebody compares that with what the disk returns.
    """

    def copy(piece: Piece) -> int:
        values = source.read(piece.tensor, piece.start, piece.stop)
        write_piece(locations, piece, values, written)
        return (piece.stop - piece.start) * locations[piece.tensor.name].itemsize

    with ThreadPoolExecutor(num_threads()) as pool:
        for num_bytes in pool.map(copy, small_pieces(locations)):
            advance(num_bytes)


def small_pieces(locations: dict[str, TensorLocation]) -> Iterator[Piece]:
    """Cut all tensors into pieces of at most `PIECE_ELEMENTS`, in the order of the files."""
    for name, location in locations.items():
        tensor = StoredTensor(name, location.shape)
        for start in range(0, tensor.numel, PIECE_ELEMENTS):
            yield Piece(tensor, start, min(start + PIECE_ELEMENTS, tensor.numel), 0)


def write_piece(
    locations: dict[str, TensorLocation],
    piece: Piece,
    values: Tensor,
    written: WrittenParts | None = None,
    file: PastCache | None = None,
) -> None:
    """Write a range of a released tensor.

    Args:
        locations: of the created folder.
        piece: which range.
        values: [piece.stop - piece.start], any dtype and device.
        written: learns what is written; see `write_weights`.
        file: that the tensor lies in, if it is open.

    Raises:
        CheckpointError: NaN or infinity among the values.
    """
    location = locations[piece.tensor.name]
    stored = values.detach().to("cpu", DTYPES[location.dtype])
    if not is_finite(stored):
        raise CheckpointError(
            f"{piece.tensor.name} holds NaN or infinity; export an earlier checkpoint"
        )
    position, content = location.byte_of(piece.start), bytes_of(stored.contiguous())
    if file is None:
        write_range(location, piece.start, stored)
    else:
        file.write(position, content)
    if written is not None:
        written.note(location.file, position, content)


def write_adapter(
    folder: Path,
    adapters: Mapping[str, Tensor],
    config: LoraConfig,
    shape: ModelShape,
    *,
    base_model: str,
    expert_weights: str = "bf16",
) -> None:
    """Fill a folder that plain PEFT loads on the plain base model.

    Args:
        folder: empty.
        adapters: whole matrices by stored name (`families/tables.py`).
        config: what the adapters were made with.
        shape: of the model.
        base_model: the model they belong on.
        expert_weights: in which form its frozen experts were; a manifest names others than bf16,
            which is what `auto` means in a run from before there was a choice.
    """
    tensors = peft_tensors(shape, adapters)
    check_room(folder, sum(values.nbytes for values in tensors.values()))
    weights = folder / "adapter_model.safetensors"
    weights.touch()
    mode = weights.stat().st_mode  # as umask says; safetensors writes a file for its owner alone
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(mode)
    description = peft_description(config, shape, base_model=base_model)
    # A set, whose order changes from process to process, and with it the file's checksum.
    description.target_modules = sorted(description.target_modules)
    description.save_pretrained(folder)
    if expert_weights not in ("auto", "bf16"):
        form = shape.stored_as if expert_weights == "base" else expert_weights
        identity = identify_weights(base_model)
        write_adapter_manifest(folder, base_model, identity=identity, expert_weights=form)
