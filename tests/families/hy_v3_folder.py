"""A model folder of hy_v3 as it is released, made on the spot: tiny widths, true names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.families.hy_v3 import HY3, native_config, served_config
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors

# Every size is another one; two dense layers would need the list that Transformers reads.
SHAPE = replace(
    HY3,
    vocab_size=2240,  # room for the bundled tokenizer
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    moe_topk=2,
    moe_intermediate_size=48,
    shared_intermediate_size=96,
    max_position_embeddings=512,
    pad_token_id=2,
    bos_token_id=0,
    eos_token_id=25,
    eod_token_id=26,
)
RENAMED = (
    (".mlp.router.gate.", ".mlp.gate."),
    (".mlp.expert_bias", ".mlp.e_score_correction_bias"),
    (".mlp.shared_mlp.", ".mlp.shared_experts."),
)


def published_config(shape: ModelShape = SHAPE) -> dict[str, Any]:
    """config.json with the published fields, and one that nobody here reads."""
    fields = native_config(shape) | served_config(shape)
    del fields["mlp_layer_types"]  # not in the published file
    return fields | {
        "model_type": "hy_v3",
        "architectures": ["HYV3ForCausalLM"],
        "dtype": "bfloat16",
        "enable_lm_head_fp32": True,
        "output_router_logits": True,
        "sep_token_id": 7,
        "use_grouped_mm": False,
    }


def random_tensors(shape: ModelShape, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by released name; biases are float32 and decide many choices."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, stored in released_tensors(shape).items():
        values = torch.randn(stored.shape, generator=generator)
        if name.endswith("expert_bias"):
            tensors[name] = 0.1 * values
        else:
            tensors[name] = (1 + 0.1 * values if values.ndim == 1 else 0.1 * values).to(dtype)
    return tensors


def fuse(tensors: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """The layout of the vendor's conversion tool: Transformers' names and 3-D experts."""
    fused = {}
    for name, values in tensors.items():
        if ".experts." not in name:
            for released, other in RENAMED:
                name = name.replace(released, other)
            fused[name] = values
    blocks = {name.partition(".experts.")[0] for name in tensors if ".experts." in name}
    for block in blocks:
        gate, up, down = (
            torch.stack(
                [
                    tensors[f"{block}.experts.{expert}.{part}_proj.weight"]
                    for expert in range(shape.num_experts)
                ]
            )
            for part in ("gate", "up", "down")
        )
        fused[f"{block}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        fused[f"{block}.experts.down_proj"] = down
    return fused


def write_hy_v3(
    folder: Path,
    *,
    shape: ModelShape = SHAPE,
    dtype: torch.dtype = torch.bfloat16,
    is_fused: bool = False,
) -> dict[str, Tensor]:
    """Write a folder, and return its tensors by released name, whatever the layout."""
    folder.mkdir(parents=True)
    tensors = random_tensors(shape, dtype)
    stored = fuse(tensors, shape) if is_fused else tensors
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = published_config(shape) | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def add_mtp_layer(folder: Path, shape: ModelShape) -> None:
    """Give a folder of float32 weights without it the layer for multi-token prediction."""
    mtp = f"model.layers.{shape.num_hidden_layers}."
    random = random_tensors(shape, torch.float32).items()
    added = {name: tensor for name, tensor in random if name.startswith(mtp)}
    file = folder / "model.safetensors"
    save_file(load_file(file) | added, file, metadata={"format": "pt"})
