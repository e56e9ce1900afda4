"""Weights come out of a folder exactly as they lie in it, in both published layouts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE, TINY
from hunyuan_train.families.tables import released_tensors, stored_tensors
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.weights import SafetensorsFolder, SeededWeights

SHAPE = replace(
    TINY,
    vocab_size=64,
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_experts=4,
    moe_topk=2,
)
EXPERTS = "model.layers.1.mlp.experts"


def random_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A whole released checkpoint: bfloat16 with float32 routers, as published."""
    torch.manual_seed(0)
    return {
        name: torch.randn(tensor.shape, dtype=torch.float32 if ".wg." in name else dtype)
        for name, tensor in released_tensors(SHAPE).items()
    }


def fuse_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other published layout: one 3-D tensor per layer and projection."""
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(SHAPE.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([tensors[f"{prefix}.{expert}.{part}_proj.weight"] for expert in range(4)])
            for part in ("gate", "up", "down")
        )
        fused[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        fused[f"{prefix}.down_proj"] = down
    return fused


def save_in_two_files(tensors: dict[str, Tensor], folder: Path) -> None:
    names = sorted(tensors)
    for index, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{index}.safetensors")


@pytest.mark.parametrize("is_fused", [False, True])
def test_every_tensor_is_read_bit_for_bit(tmp_path: Path, is_fused: bool) -> None:
    tensors = random_tensors()
    save_in_two_files(fuse_experts(tensors) if is_fused else tensors, tmp_path)
    source = SafetensorsFolder.open(tmp_path, SHAPE)
    for name, stored in released_tensors(SHAPE).items():
        values = source.read(stored, 0, stored.numel)
        assert torch.equal(values.view(stored.shape), tensors[name]), name


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_range_that_begins_and_ends_inside_experts_is_read(
    tmp_path: Path, is_fused: bool
) -> None:
    tensors = random_tensors()
    save_in_two_files(fuse_experts(tensors) if is_fused else tensors, tmp_path)
    source = SafetensorsFolder.open(tmp_path, SHAPE)
    whole = fuse_experts(tensors)[f"{EXPERTS}.gate_up_proj"]
    stored = stored_tensors(HUNYUAN_V1_MOE, f"{EXPERTS}.gate_up_proj", tuple(whole.shape))
    start, stop = 100, whole.numel() - 37
    read = torch.zeros(stop - start, dtype=whole.dtype)
    for piece in pieces_of_range(stored, start, stop):
        values = source.read(piece.tensor, piece.start, piece.stop)
        read[piece.offset : piece.offset + len(values)] = values
    assert torch.equal(read, whole.flatten()[start:stop])


def test_engine_names_mean_the_released_tensors() -> None:
    [gate, *_] = stored_tensors(HUNYUAN_V1_MOE, f"{EXPERTS}.w1", (2, 8, 16), first_expert=2)
    assert gate.name == f"{EXPERTS}.2.gate_proj.weight"
    [router] = stored_tensors(HUNYUAN_V1_MOE, "model.layers.0.mlp.router.gate.weight", (4, 16))
    assert router.name == "model.layers.0.mlp.gate.wg.weight"
    [shared] = stored_tensors(
        HUNYUAN_V1_MOE, "model.layers.0.mlp.shared_experts.up_proj.weight", (8, 16)
    )
    assert shared.name == "model.layers.0.mlp.shared_mlp.up_proj.weight"


def test_tied_output_weights_stored_twice_are_accepted(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    SafetensorsFolder.open(tmp_path, SHAPE)


def test_missing_unknown_and_misshapen_tensors_are_named_with_their_file(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors[f"{EXPERTS}.3.up_proj.weight"]
    tensors["model.layers.0.self_attn.rotary.weight"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.zeros(17)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as error:
        SafetensorsFolder.open(tmp_path, SHAPE)
    message = str(error.value)
    assert f"1 missing ({EXPERTS}.3.up_proj.weight)" in message
    assert "1 unknown (model.layers.0.self_attn.rotary.weight in model.safetensors)" in message
    assert "model.norm.weight in model.safetensors is [17], config.json makes it [16]" in message


def test_nan_is_named(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsFolder.open(tmp_path, SHAPE)
    [norm] = stored_tensors(HUNYUAN_V1_MOE, "model.norm.weight", (16,))
    with pytest.raises(ConfigError, match=r"NaN or infinity in model\.norm\.weight"):
        source.read(norm, 0, 16)


def test_seeded_weights_depend_on_seed_and_name_only() -> None:
    [tensor] = stored_tensors(HUNYUAN_V1_MOE, "model.embed_tokens.weight", (64, 16))
    [other] = stored_tensors(HUNYUAN_V1_MOE, "model.layers.0.self_attn.q_proj.weight", (16, 16))
    source = SeededWeights(seed=1, standard_deviation=0.05)
    whole = source.read(tensor, 0, 1024)
    assert torch.equal(source.read(tensor, 100, 200), whole[100:200])
    assert not torch.equal(source.read(other, 0, 256), whole[:256])
    assert not torch.equal(SeededWeights(2, 0.05).read(tensor, 0, 1024), whole)
    assert whole.std().item() == pytest.approx(0.05, rel=0.1)
