"""Block-wise quantised optimizer states, at most a byte an element, on a logarithmic scale.

As in 8-bit optimizers (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861), a block of elements
shares one float32 scale, its largest magnitude. The codes here are powers of two at equal ratios
instead of that paper's tables, so that large blocks lose no precision, and coding is arithmetic
that any device does alike. Seven bits say how large a number is:

- signed (int8), for the first moment: 0 and ±2^(-16 (127 - c) / 127) of the scale, 9.1 % apart;
- unsigned (uint8), for the second: 2^(-32 (127 - c) / 127) of the scale, 19 % apart, of which an
  update sees the root, 9.1 % too. Never 0, because the update divides by that root: what is smaller
  counts as the smallest, and such updates come out short. Without signs, eight codes share seven
  bytes, which pays for the scales: both moments together stay below two bytes an element.

Codes may take stochastic rounding, so that a moving average follows where its change is less than a
step. Coding what was decoded gives the same codes and scales again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hunyuan_train.optim.lean_memory import (
    LEAN_BLOCK,
    PACKED_GROUP,
    SLICE_BLOCKS,
    num_blocks,
    packed_bytes,
)

TOP = 127  # the code of the scale itself
STEPS_PER_OCTAVE = {torch.int8: TOP / 16, torch.uint8: TOP / 32}
# The power of a value that stochastic rounding keeps right on average. Roundings scatter a moving
# average v, by a relative variance V. With v right on average, 1 / sqrt(v) is 3/8 V too large
# (1.7 % at a beta2 of 0.95, 4 % at 0.999); with each rounding right in 1 / sqrt(v), it ends as much
# too small, because what lies too low rises faster than what lies too high falls. At the fourth
# root both cancel.
AVERAGED_POWER = {torch.int8: 1.0, torch.uint8: 0.25}
SMALLEST_SCALE = 1e-38  # stands for 0 where a block is divided by its scale


def scales_name(name: str) -> str:
    """Under which name a file holds the scales of the codes of this name."""
    return f"{name}.scales"


class Blocks(NamedTuple):
    """Blocks of a state that are worked on at once: views."""

    codes: Tensor  # [blocks, elements], int8, or [blocks, packed bytes], uint8
    scales: Tensor  # [blocks], float32
    table: Tensor  # of `code_values`; compiled code has to be given it

    def decode(self, num_elements: int) -> Tensor:
        """The values: [blocks, num_elements], float32."""
        return _code_numbers(self.codes, self.table)[:, :num_elements] * self.scales[:, None]

    def replace(self, codes: Tensor, scales: Tensor) -> None:
        """Take other codes and scales."""
        self.codes.copy_(codes)
        self.scales.copy_(scales)


@dataclass(frozen=True, slots=True)
class BlockwiseState:
    """One state of a flat parameter."""

    codes: Tensor  # [elements], int8, or [packed_bytes(elements)], uint8
    scales: Tensor  # [blocks], float32
    num_elements: int

    @classmethod
    def zeros(cls, num_elements: int, dtype: torch.dtype, device: torch.device) -> "BlockwiseState":
        """A state of zeros: its scales are 0."""
        codes = torch.zeros(code_range(dtype, 0, num_elements)[1], dtype=dtype, device=device)
        scales = torch.zeros(num_blocks(num_elements), device=device)
        return cls(codes, scales, num_elements)

    def decode(self) -> Tensor:
        """The values: [elements], float32."""
        return decode_range(self.codes, self.scales, 0, self.num_elements)

    def encode(self, values: Tensor) -> None:
        """Take new values, each as the nearest code: [elements], any float dtype."""
        for first_block, rows in block_slices(values):
            codes, scales = encode_nearest(rows.float(), self.codes.dtype)
            self.blocks(first_block, rows.shape).replace(codes, scales)

    def blocks(self, first_block: int, shape: torch.Size) -> Blocks:
        """The blocks of a slice, as `block_slices` cuts them.

        Args:
            first_block: of the slice.
            shape: of its values, [blocks, elements].
        """
        dtype, start = self.codes.dtype, first_block * LEAN_BLOCK
        first, last = code_range(dtype, start, start + shape.numel())
        codes = self.codes[first:last].view(shape[0], -1)
        scales = self.scales[first_block : first_block + shape[0]]
        return Blocks(codes, scales, code_values(dtype, self.codes.device))


def code_range(dtype: torch.dtype, start: int, stop: int) -> tuple[int, int]:
    """Where in a state's codes those of elements [start, stop) lie, packed ones in whole groups."""
    if dtype == torch.int8:
        return start, stop
    return packed_bytes(start - start % PACKED_GROUP), packed_bytes(stop)


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


def decode_range(codes: Tensor, scales: Tensor, start: int, stop: int) -> Tensor:
    """Values of elements [start, stop) of a state: [stop - start], float32.

    Args:
        codes: of `code_range(codes.dtype, start, stop)`.
        scales: of the blocks that the elements lie in, the first block first.
        start: of the elements, in the state.
        stop: their end.
    """
    elements = torch.arange(start, stop, device=codes.device)
    blocks = elements.div_(LEAN_BLOCK, rounding_mode="floor").sub_(start // LEAN_BLOCK)
    offset = start % PACKED_GROUP if codes.dtype == torch.uint8 else 0
    numbers = _code_numbers(codes[None], code_values(codes.dtype, codes.device))[0]
    return numbers[offset : offset + stop - start] * scales[blocks]


def _code_numbers(codes: Tensor, table: Tensor) -> Tensor:
    """Values of rows of codes at scale 1, those that fill up the last group included."""
    whole = unpack(codes) if codes.dtype == torch.uint8 else codes
    indices = whole.int().flatten()
    if codes.dtype == torch.int8:
        indices += TOP + 1
    return table.index_select(0, indices).view_as(whole)


def pack(codes: Tensor) -> Tensor:
    """Put eight codes below 128 into seven bytes: the eighth's bits on top of the others.

    Args:
        codes: [rows, elements], uint8.

    Returns:
        [rows, packed_bytes(elements)], uint8; the last group is filled up with zeros.
    """
    filled = functional.pad(codes, (0, -codes.shape[1] % PACKED_GROUP))
    groups = filled.view(len(codes), -1, PACKED_GROUP)
    places = torch.arange(PACKED_GROUP - 1, dtype=torch.uint8, device=codes.device)
    bits = (groups[..., PACKED_GROUP - 1 :] >> places) & 1
    return (groups[..., : PACKED_GROUP - 1] | (bits << 7)).flatten(1)


def unpack(packed: Tensor) -> Tensor:
    """The codes of groups of seven bytes, [rows, bytes]: [rows, 8 codes a group], uint8."""
    groups = packed.view(len(packed), -1, PACKED_GROUP - 1)
    places = torch.arange(PACKED_GROUP - 1, dtype=torch.uint8, device=packed.device)
    eighth = ((groups >> 7) << places).sum(dim=-1, keepdim=True, dtype=torch.uint8)
    return torch.cat([groups & TOP, eighth], dim=-1).flatten(1)


@cache
def code_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The value of each code, from the lowest (-128 or 0) up, at scale 1, float32.

    A table: powers computed on the spot may differ in their last bit by device and position.
    """
    codes = torch.arange(-TOP - 1 if dtype == torch.int8 else 0, TOP + 1)
    values = torch.exp2((codes.abs().double() - TOP) / STEPS_PER_OCTAVE[dtype])
    if dtype == torch.int8:
        values *= codes.sign()
    return values.float().to(device)


def encode_nearest(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of blocks [rows, elements], each value's nearest on the logarithmic scale, and scales.

    Returns:
        codes: [rows, elements], int8, or [rows, packed bytes], uint8.
        scales: [rows], float32.
    """
    relative, scales = _relative(values)
    position = relative.log2() * STEPS_PER_OCTAVE[dtype] + TOP
    return _store(position.round().clamp(0, TOP), values, dtype), scales


def encode_stochastically(
    values: Tensor, dtype: torch.dtype, dither: Tensor
) -> tuple[Tensor, Tensor]:
    """As `encode_nearest`, by stochastic rounding: right on average in `AVERAGED_POWER`.

    Args:
        values: [rows, elements], float32.
        dtype: of the codes.
        dither: like the values, uniform in [0, 1): rounds up what lies further up than this.
    """
    steps, power = STEPS_PER_OCTAVE[dtype], AVERAGED_POWER[dtype]
    relative, scales = _relative(values)
    lower = (relative.log2() * steps + TOP).floor().clamp(0, TOP)
    below = torch.exp2((lower - TOP) * (power / steps))
    gap = below * (2 ** (power / steps) - 1)
    if dtype == torch.int8:  # code 0 is zero, and the next one the smallest magnitude
        is_least = lower == 0
        gap = torch.where(is_least, 2 ** ((1 - TOP) / steps), gap)
        below = torch.where(is_least, 0.0, below)
    codes = lower + (relative.pow(power) - below > dither * gap)
    return _store(codes.clamp(max=TOP), values, dtype), scales


def _relative(values: Tensor) -> tuple[Tensor, Tensor]:
    magnitudes = values.abs()
    scales = magnitudes.amax(dim=1)
    return magnitudes / scales.clamp(min=SMALLEST_SCALE)[:, None], scales


def _store(codes: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    return pack(codes.to(dtype)) if dtype == torch.uint8 else (codes * values.sign()).to(dtype)
