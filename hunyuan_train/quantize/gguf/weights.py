"""The weights of a GGUF file, dequantised by the package `gguf`, under their released names."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import StoredTensor

# What llama.cpp calls a module of a layer, by its released name there.
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
    "mlp.gate.wg": "ffn_gate_inp",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"mlp.shared_mlp.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(released: str) -> tuple[str, int | None]:
    """A released tensor's name in a GGUF file, and which expert of it that is."""
    module = released.removesuffix(".weight")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.weight", None
    _, _, layer, inside = module.split(".", 3)
    expert = None
    before, is_expert, behind = inside.partition(".experts.")
    if is_expert:
        number, part = behind.split(".")
        inside, expert = f"{before}.experts.{part}", int(number)
    return f"blk.{layer}.{IN_LAYER[inside]}.weight", expert


class GgufWeights:
    """A file of one model."""

    def __init__(self, tensors: dict[str, Any], dequantise: Any) -> None:
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
        missing = [name for name in released_tensors(shape) if gguf_name(name)[0] not in tensors]
        if missing:
            raise ConfigError(f"{file} lacks {len(missing)} tensors ({missing[0]}); write it again")
        return cls(tensors, dequantize)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], float32."""
        name, expert = gguf_name(tensor.name)
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
