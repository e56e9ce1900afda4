"""Weights from codes by one kernel of Triton: codes and scales are read once, weights written once.

`decode` in `model/compressed_values.py` says what is computed, to the last bit, and the kernel is
tried against it before it is used (`parallel/quantised_experts.py`). A program makes a tile of one
expert's weights: some rows of some groups of columns that share a scale.

Only this, `gating_kernel.py` and the kernel of lean import triton, which torch brings for GPUs.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from hunyuan_train.model.compressed_values import NF4_LEVELS
from hunyuan_train.model.compression_scheme import Scheme

TILE = 4096  # weights of a program: 32 a thread, so that finding places is a small part of its work
MOST_COLUMNS = 1024  # of a tile; it divides the released widths
NUM_WARPS = 4
FORMS = {"nf4": "nf4", "group": "int4"}  # of codes, by strategy; all others are FP8


def decode_piece(
    codes: Tensor, scales: Tensor, scheme: Scheme, dtype: torch.dtype | None = None
) -> Tensor:
    """What `compressed_values.decode` gives, by one kernel: [experts, rows, columns], contiguous.

    Args:
        codes: [experts, rows, columns], FP8 or four-bit codes, on a GPU; a part of a larger tensor
            is read where it lies, if its columns lie side by side.
        scales: of these rows and columns: [experts, blocks of rows, blocks of columns].
        scheme: how the weights are compressed.
        dtype: of the result; None: the scales' dtype.

    Raises:
        RuntimeError: Triton cannot compile or start it.
    """
    codes = codes.view(torch.uint8)
    experts, rows, width = codes.shape
    columns = 2 * width if scheme.is_4bit else width
    values = torch.empty((experts, rows, columns), dtype=dtype or scales.dtype, device=codes.device)
    tile = find_tile(columns, scheme)
    tiles = triton.cdiv(rows, tile["HEIGHT"]) * triton.cdiv(columns, tile["GROUPS"] * tile["WIDE"])
    # One number for all is found at the same place.
    sizes = zip(scales.shape, scales.stride(), strict=True)
    steps = [step if size > 1 else 0 for size, step in sizes]
    try:
        decode_kernel[(tiles, experts)](
            *(codes, scales, nf4_levels(codes.device), values, rows, width),
            *(codes.stride(0), codes.stride(1), *steps),
            FORM=FORMS.get(scheme.strategy, "fp8"),
            **tile,
            num_warps=NUM_WARPS,
        )
    except TritonError as error:
        raise RuntimeError(f"{type(error).__name__} {error}") from error
    return values


def find_tile(columns: int, scheme: Scheme) -> dict[str, int]:
    """What the kernel is compiled for beside the form of codes: the sizes of a tile."""
    wide = scheme.block_columns or min(MOST_COLUMNS, triton.next_power_of_2(columns))
    lanes = triton.next_power_of_2(wide)
    num_groups = triton.next_power_of_2(triton.cdiv(columns, wide))
    groups = min(max(1, MOST_COLUMNS // lanes), num_groups)
    return {
        "HIGH": scheme.block_rows or 1,
        "WIDE": wide,
        "LANES": lanes,
        "GROUPS": groups,
        "HEIGHT": max(1, TILE // (groups * lanes)),
    }


@lru_cache(maxsize=4)
def nf4_levels(device: torch.device) -> Tensor:
    """The 16 levels: float32. Made once, because the CPU waits for the copy."""
    return torch.tensor(NF4_LEVELS, device=device)


@triton.jit
def decode_kernel(
    codes_at, scales_at, levels_at, values_at, num_rows, width,
    codes_expert, codes_row, scales_expert, scales_row, scales_column,
    FORM: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, HEIGHT: tl.constexpr,
):  # fmt: skip
    """Decode the tile whose number the program has, of the expert whose number it has, too.

    HIGH rows and WIDE columns share a scale. Lanes beyond WIDE fill up a power of two. Of the piece
    a row's codes are `width` bytes.
    """
    num_columns = width if FORM == "fp8" else width * 2
    expert = tl.program_id(1).to(tl.int64)
    codes_at += expert * codes_expert
    scales_at += expert * scales_expert
    values_at += expert * num_rows * num_columns
    across = tl.cdiv(num_columns, GROUPS * WIDE)
    row = tl.program_id(0) // across * HEIGHT + tl.arange(0, HEIGHT)[:, None, None]
    group = tl.program_id(0) % across * GROUPS + tl.arange(0, GROUPS)[None, :, None]
    is_row = row < num_rows
    lane = tl.arange(0, LANES)[None, None, :]
    column = group * WIDE + lane
    is_there = is_row & (column < num_columns) & (lane < WIDE)

    is_scaled = is_row & (group * WIDE < num_columns)
    scale_at = scales_at + row // HIGH * scales_row + group * scales_column
    scale = tl.load(scale_at, mask=is_scaled, other=0.0)
    if FORM == "fp8":
        code = tl.load(codes_at + row * codes_row + column, mask=is_there, other=0)
        value = float8_values(code)
    else:
        pair = tl.arange(0, LANES // 2)[None, None, :]
        place = group * (WIDE // 2) + pair
        is_pair = is_row & (place < width) & (pair < WIDE // 2)
        packed = tl.load(codes_at + row * codes_row + place, mask=is_pair, other=0)
        low, high = packed & 15, packed >> 4
        both = tl.join(high, low) if FORM == "nf4" else tl.join(low, high)
        code = tl.reshape(both, (HEIGHT, GROUPS, LANES)).to(tl.int32)
        value = tl.load(levels_at + code) if FORM == "nf4" else (code - 8).to(tl.float32)
    # As torch multiplies: in float32, rounded to the scales' dtype, and only then to the result's.
    value = (value * scale.to(tl.float32)).to(scale.dtype)
    tl.store(
        values_at + row * num_columns + column,
        value.to(values_at.dtype.element_ty),
        mask=is_there,
    )


@triton.jit
def float8_values(code):
    """FP8 (e4m3) as float32, exactly, on GPUs without FP8, too.

    As a float16 its bits are the same number divided by 256, subnormal ones included.
    """
    bits = code.to(tl.int16)
    half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
