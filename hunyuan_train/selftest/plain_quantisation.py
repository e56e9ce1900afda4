"""What quantised experts are worth, from the formulas of their forms and nothing of the trainer's.

A form is a grid of numbers, and which weights share a scale. Each weight becomes the number of the
grid that is nearest to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.weights import WeightSource

INT4 = [float(number) for number in range(-8, 8)]
NF4 = [
    *[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635],
    *[-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725],
    *[0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941],
    *[0.7229568362236023, 1.0],
]


@dataclass(frozen=True, slots=True)
class PlainlyQuantised:
    """A source whose routed experts are rounded to a form's grid."""

    source: WeightSource
    form: str  # of --expert_weights
    is_bf16: bool  # weights and scales are rounded to bfloat16 first

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], float32."""
        if ".mlp.experts." not in tensor.name:
            return self.source.read(tensor, start, stop)
        weight = self.source.read(tensor, 0, tensor.numel).view(tensor.shape)
        if self.is_bf16:
            weight = weight.bfloat16()
        return _quantise(weight, self.form).float().flatten()[start:stop]


def _quantise(weight: Tensor, form: str) -> Tensor:
    rows, columns = weight.shape
    if form == "fp8":
        scale = weight.abs().amax(1, keepdim=True) / 448
        return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale
    # Groups of both forms: the tiny models have experts 32 wide, for which 64 is too much.
    groups = weight.view(rows, columns // 32, 32)
    largest = groups.abs().amax(2, keepdim=True)
    if form == "int4":
        scale = largest / 7.5
        return (_nearest(groups / scale, INT4) * scale).view(rows, columns)
    scale = largest.float()
    return (_nearest(groups.float() / scale, NF4) * scale).to(weight.dtype).view(rows, columns)


def _nearest(values: Tensor, grid: list[float]) -> Tensor:
    """The number of a grid that is nearest to each value."""
    numbers = torch.tensor(grid)
    return numbers[(values[..., None].double() - numbers).abs().argmin(-1)].to(values.dtype)
