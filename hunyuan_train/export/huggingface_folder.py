"""The folder that servers load: the released layout, and all of it but the values of the weights.

The layout is known before a weight is. So the files are created first, headers written and room
reserved, and whoever has a range of a tensor writes it into its place, in any order.
"""

import json
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
from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.schema import LoraConfig, RunConfig
from hunyuan_train.export.companions import copy_files, list_companions
from hunyuan_train.export.peft_layout import peft_description, peft_tensors
from hunyuan_train.families.registry import PRESETS, family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import Kind, Piece, StoredTensor
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.build import model_class, native_config
from hunyuan_train.model.released_files import check_generation_config
from hunyuan_train.model.safetensors_files import DTYPES, create_file, read_range, write_range
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.model.weights import SafetensorsFolder, WeightSource, is_finite

MAX_FILE_BYTES = 5 * 10**9
HEADER_BYTES = 2**20  # kept free for a file's header, which takes 0.1 MB at the released size
PIECE_ELEMENTS = 4 * 2**20  # 16 MB in float32; each thread holds about three of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """Everything about a released folder but its weights' values."""

    shape: ModelShape
    dtype: torch.dtype  # of all weights but the routers'
    companions: tuple[Path, ...]  # folders to take tokenizer and other files from; later ones win


def describe_release(config: RunConfig, shape: ModelShape, source: WeightSource) -> Release:
    """What a run's model is released as: in the dtype it came in, presets in the trained one."""
    name = config.model.model_name_or_path
    dtype = trained_dtype(config)
    if isinstance(source, SafetensorsFolder):
        dtype = source.dtype
    model_folder = () if name in PRESETS else (Path(name),)
    companions = (*model_folder, tokenizer_folder(config.model))
    return Release(shape=shape, dtype=dtype, companions=companions)


def trained_dtype(config: RunConfig) -> torch.dtype:
    """What a run computes in; its adapters are written so too."""
    return torch.bfloat16 if config.train.bf16 is True else torch.float32


def create_release(folder: Path, release: Release) -> None:
    """Write everything but the values of the weights into an empty folder."""
    create_weight_files(folder, release)
    write_config(folder, release)
    for source in release.companions:
        check_generation_config(source, release.shape)
        copy_files(list_companions(source), folder)
    complete_generation_config(folder / "generation_config.json", release.shape)


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
    _write_json(folder / "model.safetensors.index.json", index_file)


def stored_dtype(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    """Routers are released in float32, everything else in the model's dtype."""
    return torch.float32 if tensor.kind is Kind.ROUTER else dtype


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


def write_config(folder: Path, release: Release) -> None:
    """Write config.json in Transformers' native dialect, with what servers ask for besides.

    The rope and the dtype are written under their names in Transformers 4 too, which would
    otherwise compute the rope without alpha.
    """
    shape = release.shape
    family, architecture = family_of(shape), model_class(shape).__name__
    config = native_config(shape, dtype=release.dtype, architectures=[architecture])
    fields = config.to_diff_dict() | family.native_config(shape)
    rope = fields["rope_parameters"]
    fields |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {**rope, "type": rope["rope_type"]} if "alpha" in rope else None,
        "torch_dtype": str(release.dtype).removeprefix("torch."),
        **family.served_config(shape),
    }
    _write_json(folder / "config.json", fields)


def complete_generation_config(path: Path, shape: ModelShape) -> None:
    """Make sure that a server stops where the model was taught to; keep what else the file says."""
    fields = read_json_object(path) if path.exists() else {}
    stops = fields.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    stops += [shape.eos_token_id, shape.eod_token_id]
    fields["eos_token_id"] = list(dict.fromkeys(stop for stop in stops if stop is not None)) or None
    fields.setdefault("pad_token_id", shape.pad_token_id)
    _write_json(path, fields)


def read_locations(folder: Path) -> dict[str, TensorLocation]:
    """Where each tensor of a created folder lies."""
    locations: dict[str, TensorLocation] = {}
    for file in sorted(folder.glob("*.safetensors")):
        locations |= read_header(file)
    return locations


def write_weights(
    source: WeightSource, locations: dict[str, TensorLocation], advance: Callable[[int], None]
) -> None:
    """Copy a whole model from a source into a created folder, in small pieces and several threads.

    Args:
        source: of every released tensor.
        locations: of the created folder.
        advance: told the bytes of each piece that is written.
    """

    def copy(piece: Piece) -> int:
        write_piece(locations, piece, source.read(piece.tensor, piece.start, piece.stop))
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


def write_piece(locations: dict[str, TensorLocation], piece: Piece, values: Tensor) -> None:
    """Write a range of a released tensor, and read it back.

    Args:
        locations: of the created folder.
        piece: which range.
        values: [piece.stop - piece.start], any dtype and device.

    Raises:
        CheckpointError: NaN or infinity among the values, or a disk that returns others.
    """
    location = locations[piece.tensor.name]
    stored = values.detach().to("cpu", DTYPES[location.dtype])
    if not is_finite(stored):
        raise CheckpointError(
            f"{piece.tensor.name} holds NaN or infinity; export an earlier checkpoint"
        )
    write_range(location, piece.start, stored)
    if not torch.equal(read_range(location, piece.start, piece.stop), stored):
        raise CheckpointError(
            f"{location.file} does not return what was written to it ({piece.tensor.name}); check "
            "that disk, and export to another"
        )


def write_adapter(
    folder: Path,
    adapters: Mapping[str, Tensor],
    config: LoraConfig,
    shape: ModelShape,
    *,
    base_model: str,
) -> None:
    """Fill a folder that plain PEFT loads on the plain base model.

    Args:
        folder: empty.
        adapters: whole matrices by stored name (`families/tables.py`).
        config: what the adapters were made with.
        shape: of the model.
        base_model: the model they belong on.
    """
    tensors = peft_tensors(adapters)
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
