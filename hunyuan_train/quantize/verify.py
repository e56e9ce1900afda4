"""Every weight that was written, beside the one that it was made of.

Scales follow from the original weights, so they must be those; and what is dequantised must lie as
near to the original as codes can. So a scale of the wrong block, a tensor scaled twice and experts
that changed places are found before the folder has its name.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.compressed_values import decode, find_scales
from hunyuan_train.model.compressed_weights import CompressedFolder
from hunyuan_train.model.compression_scheme import BLOCK, is_compressed
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.progress import show_progress

ROWS_BYTES = 16 * 2**20  # of an original, compared at once
# Of a code of three mantissa bits: half a step is a sixteenth of the value, or of the smallest
# step where the value is small. The quotient, the scale and the product are bfloat16: 1/64 more.
FLOAT8_RELATIVE, FLOAT8_OF_SCALE = 1 / 16 + 1 / 64, 1 / 512
# GPTQ moves weights by more than half a step, where others make up for it. All together they stay
# near: rounding alone moves normal weights by 0.11 of their norm, and a wrong tensor by 1.4.
INT4_RELATIVE = 0.5


def verify_weights(
    original: WeightSource, written: CompressedFolder, shape: ModelShape
) -> dict[str, float]:
    """Compare all tensors of a quantised model with those it was made of.

    Returns:
        `relative_error`: the norm of all changes by that of the weights that were compressed;
        `largest_relative_error`: that of the tensor where it is largest.

    Raises:
        CheckpointError: naming the tensor that is not what it was made of.
    """

    def compare(tensor: StoredTensor) -> tuple[float, float]:
        if is_compressed(tensor):
            return _verify_tensor(tensor, original, written)
        for start in range(0, tensor.numel, ROWS_BYTES // 4):
            stop = min(start + ROWS_BYTES // 4, tensor.numel)
            same = (one.read(tensor, start, stop) for one in (original, written))
            _demand(torch.equal(*same), tensor, "is not what it was")
        return 0.0, 0.0

    return _compare_all(shape, compare)


def verify_values(
    original: WeightSource, written: WeightSource, shape: ModelShape, *, most_error: float
) -> dict[str, float]:
    """Compare all tensors with those they were made of, where codes and scales are another's.

    Args:
        original: the model as it was.
        written: as it is read back, dequantised.
        shape: of both.
        most_error: by which a tensor's weights may change, all together, by the norm of all.

    Returns:
        see `verify_weights`.

    Raises:
        CheckpointError: naming the tensor that is not what it was made of.
    """

    def compare(tensor: StoredTensor) -> tuple[float, float]:
        error = norm = 0.0
        for first, last in _blocks_of_rows(tensor):
            width = tensor.numel // tensor.shape[0]
            before, after = (
                one.read(tensor, first * width, last * width).double()
                for one in (original, written)
            )
            error += float((after - before).square().sum())
            norm += float(before.square().sum())
        _demand(error <= norm * most_error**2, tensor, "is not near its original")  # nor is NaN
        return error, norm

    return _compare_all(shape, compare)


def _compare_all(
    shape: ModelShape, compare: Callable[[StoredTensor], tuple[float, float]]
) -> dict[str, float]:
    """Sum what a comparison finds of each tensor: squares of the norms of change and weights."""
    tensors = released_tensors(shape).values()
    changed = total = largest = 0.0
    with show_progress("verifying", sum(one.numel * 2 for one in tensors)) as advance:
        for tensor in tensors:
            error, norm = compare(tensor)
            largest = max(largest, (error / norm) ** 0.5 if norm else 0.0)
            changed, total = changed + error, total + norm
            advance(tensor.numel * 2)
    return {
        "relative_error": (changed / total) ** 0.5 if total else 0.0,
        "largest_relative_error": largest,
    }


def _verify_tensor(
    tensor: StoredTensor, original: WeightSource, written: CompressedFolder
) -> tuple[float, float]:
    """Squares of the norms of a weight's change and of the weight.

    Raises:
        CheckpointError: scales or values are wrong.
    """
    scheme, error, norm = written.scheme, 0.0, 0.0
    for first, last in _blocks_of_rows(tensor):
        columns = tensor.shape[1]
        before = original.read(tensor, first * columns, last * columns).view(-1, columns)
        codes, scales = written.read_codes(tensor, first, last)
        is_scaled = torch.equal(find_scales(before, scheme).to(scales.dtype), scales)
        _demand(is_scaled, tensor, "has scales that are not those of its weights")
        after = decode(codes, scales, scheme).float()
        before, difference = before.float(), after - before.float()
        if scheme.strategy != "group":
            _demand(_is_near(before, difference, scales), tensor, "is not near its original")
        error += float(difference.double().square().sum())
        norm += float(before.double().square().sum())
    is_near = error <= norm * INT4_RELATIVE**2
    _demand(is_near, tensor, "is not near its original")
    return error, norm


def _is_near(before: Tensor, difference: Tensor, scales: Tensor) -> bool:
    """Whether each value of some rows is as near to the original as FP8 can be."""
    if scales.shape[1] > 1 or len(scales) < len(before):
        scales = scales.repeat_interleave(BLOCK, dim=0)[: len(before)]
        scales = scales.repeat_interleave(BLOCK, dim=1)[:, : before.shape[1]]
    allowed = before.abs() * FLOAT8_RELATIVE + scales.float() * FLOAT8_OF_SCALE
    return bool((difference.abs() <= allowed).all())


def _blocks_of_rows(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    rows = tensor.shape[0]
    step = max(BLOCK, ROWS_BYTES // (2 * tensor.numel // rows) // BLOCK * BLOCK)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _demand(is_right: bool, tensor: StoredTensor, wrong: str) -> None:
    if not is_right:
        raise CheckpointError(
            f"{tensor.name} {wrong} once it is read back, so nothing was published; check the "
            "disk, and report this if it happens again"
        )
