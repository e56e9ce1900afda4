"""Optimizer states at one byte an element: block-wise 8-bit numbers on a logarithmic scale.

As in 8-bit optimizers (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861), a block of elements
shares one float32 scale, its largest magnitude. The codes here are powers of two at equal ratios
instead of that paper's tables: neighbours lie 9.1 % apart over the whole range, so that large
blocks lose no precision, and coding is arithmetic that any device does alike.

- signed (int8), for the first moment: 0 and ±2^(-16 (127 - c) / 127) of the scale;
- unsigned (uint8), for the second: 2^(-32 (255 - c) / 255) of the scale, never 0, because the
  update divides by its root. What is smaller counts as the smallest: such updates come out short.

Codes may be rounded at random, in proportion, so that a moving average stays unbiased where its
change is less than a step. Coding what was decoded gives the same codes and scales again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.config.optimizer_memory import LEAN_BLOCK

TOPS = {torch.int8: 127, torch.uint8: 255}  # the code of the scale itself
STEPS_PER_OCTAVE = {torch.int8: 127 / 16, torch.uint8: 255 / 32}
SLICE_BLOCKS = 2048  # worked on at once: 4 M elements, 17 MB for each float32 temporary
SMALLEST_SCALE = 1e-38  # stands for 0 where a block is divided by its scale


def scales_name(name: str) -> str:
    """Under which name a file holds the scales of the codes of this name."""
    return f"{name}.scales"


@dataclass(frozen=True, slots=True)
class BlockwiseState:
    """One 8-bit state of a flat parameter."""

    codes: Tensor  # [elements], int8 or uint8
    scales: Tensor  # [blocks], float32

    @classmethod
    def zeros(cls, num_elements: int, dtype: torch.dtype, device: torch.device) -> "BlockwiseState":
        """A state of zeros: its scales are 0."""
        codes = torch.zeros(num_elements, dtype=dtype, device=device)
        return cls(codes, torch.zeros(num_blocks(num_elements), device=device))

    def decode(self) -> Tensor:
        """The values: [elements], float32."""
        return decode_range(self.codes, self.scales, 0)

    def encode(self, values: Tensor) -> None:
        """Take new values, each as the nearest code: [elements], any float dtype."""
        for first_block, rows, kept in block_slices(values, self.codes):
            codes, scales = encode_nearest(rows.float(), self.codes.dtype)
            kept.copy_(codes)
            self.scales[first_block : first_block + len(rows)] = scales


def num_blocks(num_elements: int) -> int:
    """Blocks, and so scales, of a flat state."""
    return -(-num_elements // LEAN_BLOCK)


def block_slices(*flats: Tensor) -> Iterator[tuple[Any, ...]]:
    """Cut flat tensors of one length alike, so that work on them needs little memory beside them.

    Yields:
        The first block of a slice, and a view of each tensor: [blocks, LEAN_BLOCK], or [1, rest]
        for the elements after the last whole block.
    """
    num_whole = len(flats[0]) // LEAN_BLOCK
    for start in range(0, num_whole, SLICE_BLOCKS):
        bounds = slice(start * LEAN_BLOCK, min(start + SLICE_BLOCKS, num_whole) * LEAN_BLOCK)
        yield start, *(flat[bounds].view(-1, LEAN_BLOCK) for flat in flats)
    if num_whole * LEAN_BLOCK < len(flats[0]):
        yield num_whole, *(flat[num_whole * LEAN_BLOCK :].view(1, -1) for flat in flats)


def decode_range(codes: Tensor, scales: Tensor, start: int) -> Tensor:
    """Values of consecutive elements: [elements], float32.

    Args:
        codes: [elements], the first of which is element `start` of the state.
        scales: of the blocks that the elements lie in, the first block first.
        start: of the elements, in the state.
    """
    first_block = start // LEAN_BLOCK
    elements = torch.arange(start, start + len(codes), device=codes.device)
    blocks = elements.div_(LEAN_BLOCK, rounding_mode="floor").sub_(first_block)
    return decode(codes[None], scales[blocks][None])[0]


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """Values of codes [rows, elements] times scales that broadcast over them; float32."""
    indices = codes.int().flatten()
    if codes.dtype == torch.int8:
        indices += 128
    return code_values(codes.dtype, codes.device).index_select(0, indices).view_as(codes) * scales


@torch.compiler.assume_constant_result
@cache
def code_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The value of each code, from the lowest (-128 or 0) up, at scale 1: [256], float32.

    A table: powers computed on the spot may differ in their last bit by device and position.
    """
    codes = torch.arange(-128 if dtype == torch.int8 else 0, 128 if dtype == torch.int8 else 256)
    values = torch.exp2((codes.abs().double() - TOPS[dtype]) / STEPS_PER_OCTAVE[dtype])
    if dtype == torch.int8:
        values *= codes.sign()
    return values.float().to(device)


def encode_nearest(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of blocks [rows, elements], each value's nearest on the logarithmic scale, and scales.

    Returns:
        codes: [rows, elements], of the given dtype.
        scales: [rows], float32.
    """
    relative, scales = _relative(values)
    position = relative.log2() * STEPS_PER_OCTAVE[dtype] + TOPS[dtype]
    return _sign(position.round().clamp(0, TOPS[dtype]), values, dtype), scales


def encode_at_random(values: Tensor, dtype: torch.dtype, dither: Tensor) -> tuple[Tensor, Tensor]:
    """As `encode_nearest`, but up or down at random so that the value is right on average.

    Args:
        values: [rows, elements], float32.
        dtype: of the codes.
        dither: like the values, uniform in [0, 1): rounds up what lies further up than this.
    """
    top, steps = TOPS[dtype], STEPS_PER_OCTAVE[dtype]
    relative, scales = _relative(values)
    lower = (relative.log2() * steps + top).floor().clamp(0, top)
    below = torch.exp2((lower - top) / steps)
    gap = below * (2 ** (1 / steps) - 1)
    if dtype == torch.int8:  # code 0 is zero, and the next one the smallest magnitude
        is_least = lower == 0
        gap = torch.where(is_least, 2 ** ((1 - top) / steps), gap)
        below = torch.where(is_least, 0.0, below)
    codes = lower + (relative - below > dither * gap)
    return _sign(codes.clamp(max=top), values, dtype), scales


def _relative(values: Tensor) -> tuple[Tensor, Tensor]:
    magnitudes = values.abs()
    scales = magnitudes.amax(dim=1)
    return magnitudes / scales.clamp(min=SMALLEST_SCALE)[:, None], scales


def _sign(codes: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes if dtype == torch.uint8 else codes * values.sign()).to(dtype)
