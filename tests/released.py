"""A released checkpoint made on the spot: true names and config fields, tiny widths, many files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.checkpoint.folder import DIGEST, rank_file, write_manifest
from hunyuan_train.checkpoint.publish import hash_file
from hunyuan_train.checkpoint.save import write_parts
from hunyuan_train.config.load import dump_config
from hunyuan_train.config.schema import LoraConfig, ModelConfig, RunConfig, TrainConfig
from hunyuan_train.families.hunyuan_v1_moe import A13B, HUNYUAN_V1_MOE
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors, stored_tensors
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.safetensors_files import create_file
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.manifests import make_manifest

# Every size is another one, so that no tensor passes for its transpose. The vocabulary has room for
# the bundled tokenizer.
SHAPE = replace(
    A13B,
    vocab_size=2240,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    moe_topk=2,
    rope_theta=10000.0 * 1000.0 ** (16 / 14),
    pad_token_id=301,
    bos_token_id=1,
    eos_token_id=300,
    eod_token_id=307,
)
ROUTER = ".mlp.gate.wg."


def random_tensors(
    shape: ModelShape = SHAPE, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """All weights by released name, routers in float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, stored in released_tensors(shape).items():
        values = torch.randn(stored.shape, generator=generator)
        values = 1 + 0.1 * values if len(stored.shape) == 1 else 0.1 * values
        tensors[name] = values if ROUTER in name else values.to(dtype)
    return tensors


def fuse_experts(tensors: dict[str, Tensor], shape: ModelShape = SHAPE) -> dict[str, Tensor]:
    """The other published layout: one 3-D tensor per layer and projection."""
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack(
                [
                    tensors[f"{prefix}.{expert}.{part}_proj.weight"]
                    for expert in range(shape.num_experts)
                ]
            )
            for part in ("gate", "up", "down")
        )
        fused[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        fused[f"{prefix}.down_proj"] = down
    return fused


def published_config(shape: ModelShape) -> dict[str, Any]:
    """config.json as it was published: numbers repeated per layer, rope under its old name."""
    fields = family_of(shape).native_config(shape)
    del fields["rope_parameters"]
    fields |= {
        "model_type": "hunyuan",
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "attention_dropout": 0.1,
        "attention_head_dim": fields.pop("head_dim"),
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        "torch_dtype": "bfloat16",
        "norm_topk_prob": True,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
    }
    per_layer = {
        "moe_topk": shape.moe_topk,
        "num_shared_expert": 1,
        "moe_intermediate_size": shape.intermediate_size,
    }
    return fields | {name: [value] * shape.num_hidden_layers for name, value in per_layer.items()}


def native_config(shape: ModelShape) -> dict[str, Any]:
    """config.json as Transformers' own class writes it."""
    return family_of(shape).native_config(shape) | {
        "model_type": "hunyuan_v1_moe",
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "dtype": "bfloat16",
    }


def write_released(
    folder: Path,
    *,
    shape: ModelShape = SHAPE,
    is_fused: bool = False,
    is_native: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    num_files: int = 3,
) -> dict[str, Tensor]:
    """Write a model folder and return its tensors by released name, whatever the layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(shape, dtype)
    stored = fuse_experts(tensors, shape) if is_fused else tensors
    weight_map = {}
    for index in range(num_files):
        file = f"model-{index + 1:05d}-of-{num_files:05d}.safetensors"
        names = sorted(stored)[index::num_files]
        save_file({name: stored[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    contents = {
        "config.json": (native_config if is_native else published_config)(shape),
        "generation_config.json": {"eos_token_id": [300], "top_k": 20, "temperature": 0.7},
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "hy.tiktoken").write_text("IQ== 0")
    (folder / "LICENSE.txt").write_text("as published")
    return tensors


def read_released(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder in the released layout, by the map in its index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        held = load_file(folder / file)
        assert {index["weight_map"][name] for name in held} == {file}
        tensors |= held
    assert index["weight_map"].keys() == tensors.keys()
    return tensors


def make_run(folder: Path, base: Path, lora: LoraConfig | None = None) -> Path:
    """A run folder that holds a config only; returns where its checkpoint of step 3 belongs."""
    folder.mkdir()
    model = ModelConfig(model_name_or_path=str(base), tokenizer_name_or_path=str(TINY_TOKENIZER))
    train = TrainConfig(output_dir=str(folder), bf16=False)
    config = RunConfig(model=model, train=train, lora=lora or LoraConfig())
    dump_config(config, folder / "config.yaml")
    return folder / "checkpoints" / "step-000003"


Range = tuple[str, int, int, int, tuple[int, ...]]  # parameter, first expert, start, stop, shape


def kept_ranges(shape: ModelShape, rank: int, num_ranks: int, expert_size: int) -> Iterator[Range]:
    """What a rank keeps under ZeRO-3 with experts split over groups of `expert_size`."""
    experts = shape.num_experts // expert_size
    width, hidden = shape.intermediate_size, shape.hidden_size
    for name, tensor in released_tensors(shape).items():
        if ".experts." not in name:
            yield (name, 0, *_part(tensor.numel, rank, num_ranks), tensor.shape)
    for layer in range(shape.num_hidden_layers):
        for kind, size in {
            "w1": (width, hidden),
            "w2": (hidden, width),
            "w3": (width, hidden),
        }.items():
            whole = (experts, *size)
            place = _part(torch.Size(whole).numel(), rank // expert_size, num_ranks // expert_size)
            first_expert = rank % expert_size * experts
            yield (f"model.layers.{layer}.mlp.experts.{kind}", first_expert, *place, whole)


def _part(numel: int, index: int, num_parts: int) -> tuple[int, int]:
    size = -(-numel // num_parts)
    return min(index * size, numel), min((index + 1) * size, numel)


def write_checkpoint(
    folder: Path,
    shape: ModelShape,
    source: WeightSource,
    *,
    num_ranks: int,
    expert_size: int,
    is_of_today: bool = True,
) -> None:
    """Write the checkpoint that ranks would have saved of a model with these float32 weights.

    Earlier versions wrote one SHA-256 of each file, and no sums of its tensors.
    """
    folder.mkdir(parents=True)
    files = {}
    for rank in range(num_ranks):
        ranges = {one[0]: one for one in kept_ranges(shape, rank, num_ranks, expert_size)}
        file = folder / rank_file(rank)
        sizes = {
            f"master:{name}": (torch.float32, (one[3] - one[2],)) for name, one in ranges.items()
        }
        create_file(file, sizes)
        parts = (
            (
                f"master:{name}",
                piece.offset,
                source.read(piece.tensor, piece.start, piece.stop).float(),
            )
            for name, (_, first_expert, start, stop, whole) in ranges.items()
            for piece in pieces_of_range(
                stored_tensors(HUNYUAN_V1_MOE, name, whole, first_expert=first_expert), start, stop
            )
        )
        entry = write_parts(file, parts)
        if not is_of_today:
            entry = {"size": entry["size"], DIGEST: hash_file(file)}
        entries = {name: [*one[1:4], *one[4]] for name, one in ranges.items()}
        files[file.name] = entry | {"ranges": entries}
    write_manifest(folder, make_manifest(files))
