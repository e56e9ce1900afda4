"""Values of compressed weights: FP8 and four-bit codes, with their scales, and back.

The formulas are those of compressed-tensors, in the dtype of the weights as there, so that the
bytes are the same ones.
"""

import torch
from torch import Tensor

from hunyuan_train.model.compression_scheme import BLOCK, NIBBLES, Scheme

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
INT4_MIN, INT4_RANGE = -8, 15  # of symmetric codes: -8 to 7, and half the range is 7.5


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
        largest = weight.abs().unflatten(1, (-1, scheme.group_size)).amax(dim=2)
    scales = largest / half_range
    return scales.masked_fill_(scales == 0, torch.finfo(weight.dtype).eps)


def encode_float8(weight: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """FP8 codes of a weight: [rows, columns], FP8."""
    if scheme.strategy == "channel":
        return round_to_float8(weight / scales)
    blocks = round_to_float8(_cut_into_blocks(weight) / scales[:, :, None, None])
    # Bytes, because torch moves none of FP8 about.
    return _join_blocks(blocks.view(torch.uint8), weight.shape).view(FLOAT8)


def decode(codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """The weight that a server computes with: [rows, columns], in the scales' dtype.

    Args:
        codes: [rows, columns], FP8; or [rows, columns / 8], words of eight four-bit codes.
        scales: as `find_scales` gives them for these rows.
        scheme: how the weight is compressed.
    """
    if scheme.strategy == "group":
        values = unpack_int4(codes).to(scales.dtype).unflatten(1, (-1, scheme.group_size))
        return (values * scales[:, :, None]).flatten(1)
    values = codes.to(scales.dtype)
    if scheme.strategy == "channel":
        return values * scales
    blocks = _cut_into_blocks(values) * scales[:, :, None, None]
    return _join_blocks(blocks, values.shape)


def unpack_int4(words: Tensor) -> Tensor:
    """Four-bit codes, lowest bits first, from [rows, words] to int32 [rows, 8 * words]."""
    shifts = torch.arange(0, 4 * NIBBLES, 4, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).flatten(1) + INT4_MIN


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
