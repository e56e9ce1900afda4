"""Write the trained model as a Hugging Face folder, in the released layout.

The layout is known before a weight is: rank 0 writes the files' headers, then every rank writes the
ranges it keeps into their places. Nothing is gathered, no rank waits for another's data, and a rank
needs no memory for it.
"""

import json
import logging
import shutil
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers import HunYuanMoEV1Config

from hunyuan_train.checkpoint.folder import INCOMPLETE, publish
from hunyuan_train.model.layout import StoredTensor, pieces_of_range, released_tensors
from hunyuan_train.model.safetensors_files import (
    TensorLocation,
    create_file,
    read_header,
    write_range,
)
from hunyuan_train.model.shape import ModelShape, native_config_dict
from hunyuan_train.parallel.zero import (
    MASTER,
    is_primary,
    is_partitioned,
    read_state,
    weight_shards,
    weight_values,
)

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 5 * 10**9
ROUTER = ".mlp.gate.wg."  # kept in float32, as released

# What a folder needs beside weights and config.json so that a server can load it.
COMPANIONS = (
    "*.tiktoken",
    "tokenizer*",
    "tokenization_*.py",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
)


def export_model(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    *,
    shape: ModelShape,
    companions: list[Path],
) -> None:
    """Write `folder`; called by every rank, and published by rank 0 when all have written.

    Args:
        engine: between two steps.
        folder: the final folder; it appears, or is replaced, only once it is whole.
        shape: of the model.
        companions: folders to copy tokenizer and generation files from, later ones win.
    """
    unfinished = folder.with_name(folder.name + INCOMPLETE)
    dtype = next(engine.module.parameters()).dtype
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        create_weight_files(unfinished, shape, dtype)
        write_config(unfinished, shape, dtype)
        copy_companions(unfinished, companions)
    dist.barrier()
    locations: dict[str, TensorLocation] = {}
    for file in unfinished.glob("*.safetensors"):
        locations.update(read_header(file))
    write_owned_ranges(engine, locations)
    dist.barrier()
    if dist.get_rank() == 0:
        publish(unfinished, folder)
    dist.barrier()
    logger.info("exported %s", folder)


def write_owned_ranges(engine: deepspeed.DeepSpeedEngine, locations: dict[str, TensorLocation]) -> None:
    """Write what this rank keeps; of what several ranks keep, the first one writes."""
    for shard in weight_shards(engine.module):
        if not is_primary(shard):
            continue
        is_router = ROUTER in shard.stored[0].name
        values = weight_values(shard)
        if is_router and is_partitioned(shard.parameter) and shard.parameter.requires_grad:
            values = read_state(engine, shard, MASTER)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
            size = piece.stop - piece.start
            part = values[piece.offset : piece.offset + size]
            write_range(locations[piece.tensor.name], piece.start, part)


def create_weight_files(folder: Path, shape: ModelShape, dtype: torch.dtype) -> None:
    """Write the headers of all weight files, room for their tensors, and the index."""
    files = split_into_files(list(released_tensors(shape).values()), dtype)
    weight_map = {}
    for index, tensors in enumerate(files):
        name = f"model-{index + 1:05d}-of-{len(files):05d}.safetensors"
        create_file(
            folder / name,
            {tensor.name: (stored_dtype(tensor, dtype), tensor.shape) for tensor in tensors},
        )
        weight_map |= {tensor.name: name for tensor in tensors}
    total = sum(
        tensor.numel * stored_dtype(tensor, dtype).itemsize for file in files for tensor in file
    )
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index_file, indent=1), encoding="utf-8")


def stored_dtype(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    """Routers are released in float32, everything else in the training dtype."""
    return torch.float32 if ROUTER in tensor.name else dtype


def split_into_files(tensors: list[StoredTensor], dtype: torch.dtype) -> list[list[StoredTensor]]:
    """Deal tensors, in order, into files of at most `MAX_FILE_BYTES` (a larger tensor stands alone)."""
    files: list[list[StoredTensor]] = [[]]
    file_bytes = 0
    for tensor in tensors:
        size = tensor.numel * stored_dtype(tensor, dtype).itemsize
        if files[-1] and file_bytes + size > MAX_FILE_BYTES:
            files.append([])
            file_bytes = 0
        files[-1].append(tensor)
        file_bytes += size
    return files


def write_config(folder: Path, shape: ModelShape, dtype: torch.dtype) -> None:
    """Write config.json in Transformers' native dialect."""
    config = HunYuanMoEV1Config(
        **native_config_dict(shape), dtype=dtype, architectures=["HunYuanMoEV1ForCausalLM"]
    )
    config.save_pretrained(folder)


def copy_companions(folder: Path, sources: list[Path]) -> None:
    """Copy tokenizer and generation files."""
    for source in sources:
        for pattern in COMPANIONS:
            for path in source.glob(pattern):
                shutil.copy2(path, folder / path.name)
