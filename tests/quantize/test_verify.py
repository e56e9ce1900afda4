from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.model.compressed_weights import CompressedFolder, open_model
from hunyuan_train.model.safetensors_files import read_range, write_range
from hunyuan_train.model.safetensors_header import TensorLocation
from hunyuan_train.quantize.verify import verify_weights
from tests.quantize.models import BLOCK, CHANNEL, WIDE, write_quantized

EXPERT = "model.layers.1.mlp.experts.{}.up_proj.weight"


def read_whole(location: TensorLocation) -> torch.Tensor:
    return read_range(location, 0, torch.Size(location.shape).numel())


def shift_scales(written: CompressedFolder) -> None:
    """Each block gets the scale of the next one."""
    location = written.locations[EXPERT.format(2) + "_scale"]
    write_range(location, 0, read_whole(location).roll(1))


def scale_twice(written: CompressedFolder) -> None:
    """A tensor is divided by its scale once more, so its codes are too large."""
    location = written.locations["model.layers.0.self_attn.q_proj.weight"]
    codes = read_whole(location).float() * 1.25
    write_range(location, 0, codes.clamp(-448, 448).to(torch.float8_e4m3fn))


def swap_experts(written: CompressedFolder) -> None:
    """Two experts change places, codes and scales."""
    for ending in ("", "_scale"):
        places = [written.locations[EXPERT.format(expert) + ending] for expert in (1, 3)]
        values = [read_whole(place) for place in places]
        for place, value in zip(places, reversed(values), strict=True):
            write_range(place, 0, value)


def change_a_norm(written: CompressedFolder) -> None:
    location = written.locations["model.layers.0.input_layernorm.weight"]
    write_range(location, 3, torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (shift_scales, "experts.2.up_proj.weight has scales that are not those of its weights"),
        (scale_twice, "q_proj.weight is not near its original"),
        (swap_experts, "experts.1.up_proj.weight has scales that are not those of its weights"),
        (change_a_norm, "input_layernorm.weight is not what it was"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, plant: Callable[[CompressedFolder], None], message: str
) -> None:
    _, written = write_quantized(tmp_path, BLOCK)
    _, original, _ = open_model(tmp_path / "in")
    verify_weights(original, written, WIDE)
    plant(written)
    with pytest.raises(CheckpointError, match=message):
        verify_weights(original, written, WIDE)


def test_the_error_of_rounding_is_that_of_three_mantissa_bits(tmp_path: Path) -> None:
    _, written = write_quantized(tmp_path, CHANNEL)
    _, original, _ = open_model(tmp_path / "in")
    numbers = verify_weights(original, written, WIDE)
    assert 0.02 < numbers["relative_error"] <= numbers["largest_relative_error"] < 0.03
