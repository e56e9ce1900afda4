"""Small models that are quantised in tests."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.compressed_weights import CompressedFolder, open_model
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.quantize.float8_writer import write_float8
from hunyuan_train.quantize.job import Calibration, Job
from tests.released import SHAPE, write_released

# Neither a multiple of a block of 128 nor less than one.
WIDE = replace(SHAPE, hidden_size=192, intermediate_size=160, head_dim=32, num_experts=4)
DENSE = replace(
    PRESETS["tiny-dense"], vocab_size=2240, hidden_size=192, intermediate_size=160, head_dim=32
)
CHANNEL, BLOCK = Scheme("channel"), Scheme("block")


def make_job(source: Path, output: Path, shape: ModelShape = WIDE) -> Job:
    """What is to be quantised, without calibration."""
    calibration = Calibration(num_samples=4, python=None)
    return Job(source=source, shape=shape, output=output, type="", calibration=calibration)


def write_quantized(
    folder: Path, scheme: Scheme, shape: ModelShape = WIDE, **layout: bool
) -> tuple[dict[str, Tensor], CompressedFolder]:
    """Write a model and the same one in FP8: its tensors, and those that are read back."""
    tensors = write_released(folder / "in", shape=shape, is_native=True, **layout)
    (folder / "out").mkdir()
    write_float8(make_job(folder / "in", folder / "out", shape), folder / "out", scheme)
    found, source, _ = open_model(folder / "out")
    assert found == shape
    assert isinstance(source, CompressedFolder)
    return tensors, source


def plain_float8(weight: Tensor, scheme: Scheme) -> Tensor:
    """A weight as FP8 leaves it, by the plain formula, in its own dtype."""
    rows, columns = weight.shape
    height, width = (1, columns) if scheme.strategy == "channel" else (128, 128)
    result = torch.empty_like(weight)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            part = weight[row : row + height, column : column + width]
            scale = part.abs().max() / 448
            codes = (part / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            result[row : row + height, column : column + width] = codes.to(weight.dtype) * scale
    return result
