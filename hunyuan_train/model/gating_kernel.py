"""SwiGLU of rows that have a weight each, by one kernel of Triton forward and one backward.

`parallel/row_weights.py` says what is computed. A program has a row: it reads gate and up once, and
in the backward pass their gradient, and writes each result once. A weight's gradient is summed by
the program that has the row, always in the same order. Imported where there are GPUs only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # columns at a time; it divides the released widths
NUM_WARPS = 4


def forward(gate_NI: Tensor, up_NI: Tensor, weights_N: Tensor) -> Tensor:
    """SiLU of gate times up times the row's weight: [rows, width].

    Args:
        gate_NI: [rows, width], whose columns lie side by side.
        up_NI: of the same shape and dtype.
        weights_N: [rows], float32.
    """
    rows, width = gate_NI.shape
    result = gate_NI.new_empty((rows, width))
    if rows:
        forward_kernel[(rows,)](
            *(gate_NI, up_NI, weights_N.contiguous(), result),
            *(width, gate_NI.stride(0), up_NI.stride(0)),
            BLOCK=block_of(width),
            num_warps=NUM_WARPS,
        )
    return result


def backward(
    gradient_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, [rows, width], and of weights, [rows], float32.

    Args:
        gradient_NI: of the result, contiguous.
        gate_NI: as in `forward`.
        up_NI: as in `forward`.
        weights_N: as in `forward`.
    """
    rows, width = gate_NI.shape
    of_gate, of_up = gate_NI.new_empty((rows, width)), up_NI.new_empty((rows, width))
    of_weights = weights_N.new_empty((rows,), dtype=torch.float32)
    if rows:
        backward_kernel[(rows,)](
            *(gradient_NI, gate_NI, up_NI, weights_N.contiguous(), of_gate, of_up, of_weights),
            *(width, gate_NI.stride(0), up_NI.stride(0)),
            BLOCK=block_of(width),
            num_warps=NUM_WARPS,
        )
    return of_gate, of_up, of_weights


def block_of(width: int) -> int:
    """Columns that a program works on at a time."""
    return min(BLOCK, triton.next_power_of_2(width))


@triton.jit
def forward_kernel(
    gate_at, up_at, weights_at, result_at, width, gate_row, up_row, BLOCK: tl.constexpr
):  # fmt: skip
    """One row; int64, because rows times width may be more than 2^31."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_at + row)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        is_there = column < width
        gate = tl.load(gate_at + row * gate_row + column, mask=is_there, other=0.0).to(tl.float32)
        up = tl.load(up_at + row * up_row + column, mask=is_there, other=0.0).to(tl.float32)
        result = gate * tl.sigmoid(gate) * up * weight
        result = result.to(result_at.dtype.element_ty)
        tl.store(result_at + row * width + column, result, mask=is_there)


@triton.jit
def backward_kernel(
    gradient_at, gate_at, up_at, weights_at, of_gate_at, of_up_at, of_weights_at,
    width, gate_row, up_row, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_at + row)
    of_weight = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        is_there = column < width
        at = row * width + column
        gradient = tl.load(gradient_at + at, mask=is_there, other=0.0).to(tl.float32)
        gate = tl.load(gate_at + row * gate_row + column, mask=is_there, other=0.0).to(tl.float32)
        up = tl.load(up_at + row * up_row + column, mask=is_there, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        silu = gate * share
        of_weight += gradient * silu * up
        gradient = gradient * weight
        of_gate = gradient * up * share * (1.0 + gate * (1.0 - share))
        of_up = gradient * silu
        tl.store(of_gate_at + at, of_gate.to(of_gate_at.dtype.element_ty), mask=is_there)
        tl.store(of_up_at + at, of_up.to(of_up_at.dtype.element_ty), mask=is_there)
    tl.store(of_weights_at + row, tl.sum(of_weight, axis=0))
