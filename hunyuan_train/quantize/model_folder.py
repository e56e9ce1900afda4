"""What lies beside the weights of a quantised model: its index, its config, all other files."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hunyuan_train.checkpoint.publish import hash_files
from hunyuan_train.export.companions import copy_files, list_other_files
from hunyuan_train.families.tables import modules_of_kind, released_tensors
from hunyuan_train.families.tensors import Kind
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.compression_scheme import CONFIG, Layout, Scheme, describe_scheme
from hunyuan_train.model.released_files import INDEX
from hunyuan_train.model.safetensors_header import ITEMSIZES
from hunyuan_train.quantize.job import Job


def write_index(
    folder: Path, names: dict[str, list[str]], layouts: Iterable[dict[str, Layout]]
) -> dict[str, str]:
    """Write the index of a model's weights and return its digest.

    Args:
        folder: of the weights.
        names: of the tensors of each file.
        layouts: of all files.
    """
    total = sum(
        torch.Size(size).numel() * ITEMSIZES[dtype]
        for layout in layouts
        for dtype, size in layout.values()
    )
    weight_map = {name: file for file in sorted(names) for name in names[file]}
    return write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_companions(job: Job, folder: Path, scheme: Scheme) -> dict[str, str]:
    """Copy all other files of a model, say in its config how it is compressed, return digests."""
    others = [path for path in list_other_files(job.source) if path.name != INDEX]
    copied = copy_files(others, folder)
    digests = hash_files([path for path in copied if path.name != "config.json"], lambda _: None)
    tensors = released_tensors(job.shape).values()
    routers = [one.name.removesuffix(".weight") for one in tensors if one.kind is Kind.ROUTER]
    head = modules_of_kind(job.shape, Kind.HEAD)
    first = job.shape.num_hidden_layers
    # Layers for multi-token prediction stay as they are; engines give their modules other names.
    carried = [rf"re:.*layers\.{first + number}\..*" for number in range(job.shape.num_mtp_layers)]
    config = read_json_object(folder / "config.json")
    config[CONFIG] = describe_scheme(scheme, [*head, *routers, *carried])
    return digests | write_json(folder / "config.json", config)


def write_json(path: Path, content: dict[str, Any]) -> dict[str, str]:
    """Write a JSON file and return its digest."""
    encoded = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    path.write_bytes(encoded)
    return {path.name: hashlib.sha256(encoded).hexdigest()}


def size_of_weights(folder: Path) -> int:
    """Bytes of a model's weight files, of whatever form."""
    endings = (".safetensors", ".gguf")
    return sum(one.stat().st_size for one in folder.iterdir() if one.suffix in endings)
