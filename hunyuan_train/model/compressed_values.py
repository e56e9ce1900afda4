"""Values of compressed weights: FP8 and four-bit codes, with their scales, and back.

The formulas are those of compressed-tensors, in the dtype of the weights as there, and for NF4
those of bitsandbytes, so that the bytes are the same ones.
"""

from functools import lru_cache

import torch
from torch import Tensor

from hunyuan_train.model.compression_scheme import BLOCK, Scheme

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
INT4_MIN, INT4_RANGE = -8, 15  # of symmetric codes: -8 to 7, and half the range is 7.5
# Quantiles of a normal distribution, scaled to [-1, 1], with a zero (arXiv 2305.14314, appendix E).
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
SMALLEST_SCALE = 1e-38  # that NF4 divides by, as bitsandbytes does: blocks of zeros stay zeros


def round_to_float8(values: Tensor) -> Tensor:
    """Round to FP8; what is larger than FP8 holds becomes its largest value."""
    return values.clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8)


def find_scales(weight: Tensor, scheme: Scheme) -> Tensor:
    """The scales of a weight's rows, from the largest value of each channel, block or group.

    Args:
        weight: [rows, columns], float; whole blocks of rows where blocks share a scale, but for
            the last.
        scheme: how it is compressed.

    Returns:
        [rows or blocks of rows, scales], in the weight's dtype; NaN or infinite where a value is.
    """
    half_range = INT4_RANGE / 2 if scheme.strategy == "group" else FLOAT8_MAX
    if scheme.strategy == "channel":
        largest = weight.abs().amax(dim=1, keepdim=True)
    elif scheme.strategy == "block":
        largest = _cut_into_blocks(weight.abs()).amax(dim=(2, 3))
    else:
        largest = _largest_of_groups(weight, scheme.group_size)
    scales = largest / half_range
    return scales.masked_fill_(scales == 0, torch.finfo(weight.dtype).eps)


def encode_float8(weight: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """FP8 codes of a weight: [rows, columns], FP8."""
    if scheme.strategy == "channel":
        return round_to_float8(weight / scales)
    blocks = round_to_float8(_cut_into_blocks(weight) / scales[:, :, None, None])
    # Bytes, because torch moves none of FP8 about.
    return _join_blocks(blocks.view(torch.uint8), weight.shape).view(FLOAT8)


def encode_int4(weight: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """Four-bit codes of a weight, each rounded to the nearest: [rows, columns / 8], int32 words."""
    groups = weight.unflatten(1, (-1, scheme.group_size)) / scales[:, :, None]
    return pack_int4(groups.round().clamp(INT4_MIN, INT4_MIN + INT4_RANGE).flatten(1))


def pack_int4(codes: Tensor) -> Tensor:
    """Words of eight codes: [rows, columns / 8], int32, of whole numbers [rows, columns]."""
    nibbles = (codes - INT4_MIN).to(torch.uint8).contiguous()
    pairs = nibbles.view(torch.int16)  # the second in the high byte
    return (pairs | pairs >> 4).to(torch.uint8).view(torch.int32)


def find_nf4_scales(weight: Tensor, scheme: Scheme) -> Tensor:
    """The largest absolute value of each group of inputs: [rows, groups], float32."""
    return _largest_of_groups(weight, scheme.group_size).float()


def _largest_of_groups(weight: Tensor, group_size: int) -> Tensor:
    """The largest absolute value of each group of inputs: [rows, groups], in the weight's dtype."""
    # Without their signs floats have the order of their bits, and CPUs reduce whole numbers seven
    # times as fast as bfloat16.
    dtype = torch.int16 if weight.itemsize == 2 else torch.int32
    sizes = weight.view(dtype) & torch.iinfo(dtype).max
    return sizes.unflatten(1, (-1, group_size)).amax(dim=2).view(weight.dtype)


def encode_nf4(weight: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """NF4 codes of a weight, two in a byte, the first in the high bits: [rows, columns / 2]."""
    factors = 1.0 / scales.clamp(min=SMALLEST_SCALE)
    scaled = weight.float().unflatten(1, (-1, scheme.group_size)) * factors[:, :, None]
    # Two look-ups and a comparison take a fifth of the time of a binary search in 15 bounds.
    lowest, bounds = _nf4_cells(weight.device)
    cells = (scaled.view(torch.int32) >> 16).bitwise_and_(0xFFFF).flatten()
    codes = lowest.index_select(0, cells) + (scaled.flatten() > bounds.index_select(0, cells))
    pairs = codes.view(weight.shape).view(torch.int16)  # the second in the high byte
    return (pairs << 4 | pairs >> 8).to(torch.uint8)


@lru_cache(maxsize=4)
def _nf4_cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the floats that share their upper 16 bits: the lowest code, and the bound above it.

    No two bounds are so close that one cell holds both, so a code is the lowest one or the next.

    Returns:
        lowest: [65536], uint8.
        bounds: [65536], float32; infinite above the last code.
    """
    levels = torch.tensor(NF4_LEVELS)
    bounds = (levels[1:] + levels[:-1]) / 2
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack((upper, upper | 0xFFFF)).view(torch.float32)
    lowest = torch.bucketize(ends, bounds).amin(dim=0)
    above = torch.cat((bounds, torch.full((1,), torch.inf)))[lowest]
    return lowest.to(torch.uint8).to(device), above.to(device)


def encode(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight, as `decode` takes them.

    Args:
        weight: [rows, columns], float, finite.
        scheme: one of the schemes that need no calibration.
    """
    if scheme.strategy == "nf4":
        scales = find_nf4_scales(weight, scheme)
        return encode_nf4(weight, scales, scheme), scales
    scales = find_scales(weight, scheme)
    if scheme.strategy == "group":
        return encode_int4(weight, scales, scheme), scales
    return encode_float8(weight, scales, scheme), scales


def decode(
    codes: Tensor, scales: Tensor, scheme: Scheme, dtype: torch.dtype | None = None
) -> Tensor:
    """The weights that a server computes with: [..., rows, columns].

    Args:
        codes: [..., rows, columns], FP8; or words of eight four-bit codes in columns / 8; or bytes
            of two NF4 codes in columns / 2.
        scales: as `find_scales` gives them for these rows, or those of columns that begin a block.
        scheme: how the weights are compressed.
        dtype: of the result; None: the scales' dtype. Rounding happens in the scales' dtype first,
            which for NF4 is float32.
    """
    if scheme.strategy == "nf4":
        values = unpack_nf4(codes)
    elif scheme.strategy == "group":
        values = unpack_int4(codes).to(scales.dtype)
    else:
        values = codes.to(scales.dtype)
    _multiply_blocks(values, scales, scheme)
    return values if dtype is None else values.to(dtype)


def spread_scales(scales: Tensor, shape: torch.Size, scheme: Scheme) -> Tensor:
    """The scale of every weight: [rows, columns], float32."""
    values = torch.ones(shape)
    _multiply_blocks(values, scales.float(), scheme)
    return values


def _multiply_blocks(values: Tensor, scales: Tensor, scheme: Scheme) -> None:
    """Multiply [..., rows, columns] by the scales of their blocks, in place."""
    if scheme.strategy == "block":
        rows, columns = values.shape[-2:]
        wide = scales.repeat_interleave(BLOCK, -1)[..., :columns]
        values *= wide.repeat_interleave(BLOCK, -2)[..., :rows, :]
    elif scheme.block_columns:
        values.unflatten(-1, (-1, scheme.block_columns)).mul_(scales[..., None])
    else:
        values *= scales


def unpack_int4(words: Tensor) -> Tensor:
    """Four-bit codes, lowest bits first, from [..., words] to int8 [..., 8 * words]."""
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2).view(torch.int8) + INT4_MIN


def unpack_nf4(pairs: Tensor) -> Tensor:
    """Levels of NF4 codes, high bits first, from [..., bytes] to float32 [..., 2 * bytes]."""
    table = _nf4_pairs(pairs.device)
    return table.index_select(0, pairs.flatten().int()).view(*pairs.shape[:-1], -1)


@lru_cache(maxsize=4)
def _nf4_pairs(device: torch.device) -> Tensor:
    """The two levels of every byte: [256, 2]. Made once, because the CPU waits for the copy."""
    levels = torch.tensor(NF4_LEVELS)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), -1).to(device)


def round_activations(values: Tensor, scheme: Scheme) -> Tensor:
    """What a server that computes in FP8 makes of what goes into a projection.

    Args:
        values: [..., features], float32. Each token has a scale, or each 128 features of it.
        scheme: of the weights.
    """
    if not scheme.rounds_activations:
        return values
    size = BLOCK if scheme.strategy == "block" else values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % size))
    groups = padded.unflatten(-1, (-1, size))
    scales = groups.abs().amax(dim=-1, keepdim=True) / FLOAT8_MAX
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)
    rounded = round_to_float8(groups / scales).to(values.dtype) * scales
    return rounded.flatten(-2)[..., : values.shape[-1]]


def _cut_into_blocks(matrix: Tensor) -> Tensor:
    """[rows, columns] to [blocks of rows, blocks of columns, 128, 128], zeros at the edges."""
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -columns % BLOCK, 0, -rows % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2)


def _join_blocks(blocks: Tensor, size: tuple[int, ...]) -> Tensor:
    joined = blocks.transpose(1, 2).flatten(2).flatten(0, 1)
    return joined[: size[0], : size[1]].contiguous()
