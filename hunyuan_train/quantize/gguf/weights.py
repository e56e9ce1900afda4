"""The weights of a GGUF file, dequantised by the package `gguf`, under their released names."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.family import Family
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import LAYERS, kind_of, released_tensors
from hunyuan_train.families.tensors import Kind, StoredTensor

# What llama.cpp calls a module, by its kind, and by its own name where a kind has several. The same
# for all architectures.
OUTSIDE = {Kind.EMBEDDING: "token_embd", Kind.NORM: "output_norm", Kind.HEAD: "output"}
IN_LAYER = {
    Kind.ROUTER: "ffn_gate_inp",
    Kind.ROUTER_BIAS: "exp_probs_b",
    Kind.MLP: "ffn_{part}",
    Kind.SHARED_EXPERT: "ffn_{part}_shexp",
    Kind.EXPERT: "ffn_{part}_exps",
    Kind.ATTENTION: "attn_{part}",
    Kind.HEAD_NORM: "attn_{letter}_norm",  # of queries or of keys
    Kind.NORM: "{part}_norm",
    Kind.EXTRA: "nextn.{part}",  # a layer for multi-token prediction
}
PARTS = {  # where it is not a projection's name without the ending
    "o_proj": "output",
    "eh_proj": "eh_proj",
    "input_layernorm": "attn",
    "post_attention_layernorm": "ffn",
    "final_layernorm": "shared_head_norm",
}
EXPERT_NUMBER = re.compile(r"\.experts\.(\d+)\.")


def gguf_name(family: Family, released: str) -> tuple[str, int | None]:
    """A released tensor's name in a GGUF file, and which expert of it that is."""
    kind, module = kind_of(family, released), released.removesuffix(".weight")
    ending = released.removeprefix(module)  # none behind a bias of routers
    if not module.startswith(LAYERS):
        return OUTSIDE[kind] + ending, None
    *_, layer, inside = module.split(".", 3)
    own_name = inside.rpartition(".")[2]
    part = PARTS.get(own_name, own_name.removesuffix("_proj"))
    expert = EXPERT_NUMBER.search(inside)
    name = f"blk.{layer}.{IN_LAYER[kind].format(part=part, letter=own_name[0])}{ending}"
    return name, int(expert[1]) if expert else None


class GgufWeights:
    """A file of one model."""

    def __init__(self, family: Family, tensors: dict[str, Any], dequantise: Any) -> None:
        self._family = family
        self._tensors = tensors
        self._dequantise = dequantise

    @classmethod
    def open(cls, file: Path, shape: ModelShape) -> "GgufWeights":
        """Read the header.

        Raises:
            ConfigError: the package `gguf` is not installed, or the file lacks a tensor.
        """
        try:
            from gguf import GGUFReader, dequantize
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the weights of a GGUF file are read by the package gguf, which is not installed; "
                "pip install 'gguf>=0.19,<0.20'"
            ) from error
        tensors = {one.name: one for one in GGUFReader(file).tensors}
        family = family_of(shape)
        wanted = {name: gguf_name(family, name)[0] for name in released_tensors(shape)}
        missing = [name for name in wanted if wanted[name] not in tensors]
        if missing:
            raise ConfigError(f"{file} lacks {len(missing)} tensors ({missing[0]}); write it again")
        return cls(family, tensors, dequantize)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], float32."""
        name, expert = gguf_name(self._family, tensor.name)
        stored = self._tensors[name]
        data = stored.data if expert is None else stored.data[expert]
        first = 0
        if len(tensor.shape) > 1:  # its rows are coded one by one
            columns = tensor.shape[-1]
            first, last = start // columns, -(-stop // columns)
            data, first = data[first:last], first * columns
        values = np.array(self._dequantise(data, stored.tensor_type), dtype=np.float32)
        return torch.from_numpy(values).flatten()[start - first : stop - first]


def open_gguf(folder: Path, shape: ModelShape) -> "GgufWeights":
    """The weights of a written folder, dequantised, by released name.

    Raises:
        ConfigError: the package `gguf` is not installed.
    """
    [file] = folder.glob("model-*.gguf")
    return GgufWeights.open(file, shape)
