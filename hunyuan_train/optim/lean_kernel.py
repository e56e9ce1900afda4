"""The update of lean as one kernel of Triton: what it needs is read once and written once.

`update_blocks` in `optim/lean.py` says what is computed, and the kernel is tried against it before
it is used. A program has one block of a state, as groups of eight elements, because eight codes of
the second moment share seven bytes. Random bits are made from positions inside.

Nothing else here imports triton, which torch brings for GPUs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from hunyuan_train.optim.blockwise_states import (
    AVERAGED_POWER,
    SMALLEST_SCALE,
    STEPS_PER_OCTAVE,
    TOP,
    BlockwiseState,
    code_values,
)
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, PACKED_GROUP, num_blocks

GROUPS = LEAN_BLOCK // PACKED_GROUP
NUM_WARPS = 8  # 2,048 elements: eight a thread
FIRST_STEPS: tl.constexpr = tl.constexpr(STEPS_PER_OCTAVE[torch.int8])
SECOND_STEPS: tl.constexpr = tl.constexpr(STEPS_PER_OCTAVE[torch.uint8])
HIGHEST: tl.constexpr = tl.constexpr(TOP)
SMALLEST: tl.constexpr = tl.constexpr(SMALLEST_SCALE)
# Distances between neighbouring codes, in the power that rounding keeps right on average.
FIRST_POWER: tl.constexpr = tl.constexpr(1 / STEPS_PER_OCTAVE[torch.int8])
SECOND_POWER: tl.constexpr = tl.constexpr(
    AVERAGED_POWER[torch.uint8] / STEPS_PER_OCTAVE[torch.uint8]
)
FIRST_GAP: tl.constexpr = tl.constexpr(2**FIRST_POWER.value - 1)
SECOND_GAP: tl.constexpr = tl.constexpr(2**SECOND_POWER.value - 1)
LEAST_GAP: tl.constexpr = tl.constexpr(2 ** ((1 - TOP) / STEPS_PER_OCTAVE[torch.int8]))


def update_flat(
    flat: Tensor,
    gradients: Tensor,
    moments: list[BlockwiseState],
    seed: tuple[Tensor, Tensor],
    numbers: Tensor,
) -> Tensor:
    """One AdamW step of a whole flat parameter, in place, by one kernel.

    Args:
        flat: [elements], bfloat16, which take stochastic rounding, or float32, which are exact.
        gradients: [elements], of any float dtype.
        moments: the first and the second.
        seed: both halves of it, int32 scalars.
        numbers: of `step_numbers`, float32.

    Returns:
        The number of weights that changed: an int64 scalar.

    Raises:
        RuntimeError: Triton cannot compile or start it.
    """
    first, second = moments
    blocks = num_blocks(flat.numel())
    moved = torch.empty(blocks, dtype=torch.int32, device=flat.device)
    try:
        update_kernel[(blocks,)](
            *(flat, gradients, first.codes, first.scales, second.codes, second.scales),
            *(code_values(torch.int8, flat.device), code_values(torch.uint8, flat.device)),
            *(numbers, *seed, moved, flat.numel()),
            IS_ROUNDED=flat.dtype == torch.bfloat16,
            GROUPS=GROUPS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # as torch rounds: a product, and then its sum
        )
    except TritonError as error:
        raise RuntimeError(f"{type(error).__name__} {error}") from error
    return moved.sum()


@triton.jit
def update_kernel(
    weights_at, gradients_at, first_at, first_scales_at, second_at, second_scales_at,
    first_values_at, second_values_at, numbers_at, low_at, high_at, moved_at, num_elements,
    IS_ROUNDED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Update the block whose number the program has."""
    block = tl.program_id(0).to(tl.int64)
    group = block * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, 8)[None, :]
    place = group * 8 + lane
    is_there = place < num_elements
    # The last group is filled up, and its seven bytes are all there.
    packed_place, is_packed = group * 7 + lane, (lane < 7) & (group * 8 < num_elements)

    bits = hash_positions(place, tl.load(low_at), tl.load(high_at))
    weights = tl.load(weights_at + place, mask=is_there, other=0.0)
    gradient = tl.load(gradients_at + place, mask=is_there, other=0.0).to(tl.float32)
    first_codes = tl.load(first_at + place, mask=is_there, other=0).to(tl.int32)
    packed = tl.load(second_at + packed_place, mask=is_packed, other=0).to(tl.int32)
    first_old = tl.load(first_values_at + first_codes + (HIGHEST + 1))
    second_old = tl.load(second_values_at + unpack(packed, lane))

    beta1, rest1 = tl.load(numbers_at), tl.load(numbers_at + 1)
    beta2, rest2 = tl.load(numbers_at + 2), tl.load(numbers_at + 3)
    rate, root = tl.load(numbers_at + 4), tl.load(numbers_at + 5)
    decay, epsilon = tl.load(numbers_at + 6), tl.load(numbers_at + 7)
    gradient = gradient * tl.load(numbers_at + 8)
    first = first_old * tl.load(first_scales_at + block) * beta1 + gradient * rest1
    second = second_old * tl.load(second_scales_at + block) * beta2 + gradient * gradient * rest2
    first = tl.where(is_there, first, 0.0)
    second = tl.where(is_there, second, 0.0)
    exact = weights.to(tl.float32)
    divisor = tl.div_rn(tl.sqrt_rn(second), root) + epsilon
    updated = exact - (tl.div_rn(rate * first, divisor) + decay * exact)
    if IS_ROUNDED:
        raised = updated.to(tl.int32, bitcast=True) + (bits & 0xFFFF).to(tl.int32)
        updated = (raised & -0x10000).to(tl.float32, bitcast=True)
    has_moved = ((updated != exact) & is_there).to(tl.int32)
    tl.store(moved_at + block, tl.sum(tl.sum(has_moved, axis=1), axis=0))
    tl.store(weights_at + place, updated.to(weights.dtype), mask=is_there)

    code, scale = encode_first(first, bits >> 8)
    tl.store(first_at + place, code.to(tl.int8), mask=is_there)
    tl.store(first_scales_at + block, scale)
    code, scale = encode_second(second, bits >> 16)
    code = tl.where(is_there, code, 0.0).to(tl.int32)
    tl.store(second_at + packed_place, pack(code, lane).to(tl.uint8), mask=is_packed)
    tl.store(second_scales_at + block, scale)


@triton.jit
def encode_first(values, bits):
    """Signed codes of a block, right on average, and its scale: float32."""
    relative, scale = relate(values)
    lower = lower_code(relative, FIRST_STEPS)
    # Code 0 is zero, and the next one the smallest magnitude.
    below = tl.exp2((lower - HIGHEST) * FIRST_POWER)
    is_least = lower == 0.0
    gap = tl.where(is_least, LEAST_GAP, below * FIRST_GAP)
    below = tl.where(is_least, 0.0, below)
    code = round_up(lower, relative - below, gap, bits)
    return tl.where(values < 0.0, -code, code), scale


@triton.jit
def encode_second(values, bits):
    """Codes of a block, right on average in the fourth root, and its scale: float32."""
    relative, scale = relate(values)
    lower = lower_code(relative, SECOND_STEPS)
    below = tl.exp2((lower - HIGHEST) * SECOND_POWER)
    excess = tl.sqrt_rn(tl.sqrt_rn(relative)) - below
    return round_up(lower, excess, below * SECOND_GAP, bits), scale


@triton.jit
def hash_positions(place, low, high):
    """As the function of this name in `optim/lean.py`: uint32."""
    bits = place.to(tl.uint32) + low.to(tl.uint32, bitcast=True)
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = bits ^ high.to(tl.uint32, bitcast=True)
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def unpack(packed, lane):
    """Codes of seven bits of groups of seven bytes: [groups, 8], int32."""
    eighth = tl.sum((packed >> 7) << lane, axis=1)[:, None]
    return tl.where(lane == 7, eighth, packed & 127)


@triton.jit
def pack(code, lane):
    """Bytes of groups of eight codes, of which the eighth's bits lie on top of the others."""
    eighth = tl.sum(tl.where(lane == 7, code, 0), axis=1)[:, None]
    return code | (((eighth >> lane) & 1) << 7)


@triton.jit
def relate(values):
    """Magnitudes by the largest one, and that one."""
    magnitudes = tl.abs(values)
    scale = tl.max(tl.max(magnitudes, axis=1), axis=0)
    least = tl.full((), SMALLEST, tl.float32)  # below what Triton takes for float32 by itself
    return tl.div_rn(magnitudes, tl.maximum(scale, least)), scale


@triton.jit
def lower_code(relative, STEPS: tl.constexpr):
    """The code at or below a magnitude, float32."""
    return tl.minimum(tl.maximum(tl.floor(tl.log2(relative) * STEPS + HIGHEST), 0.0), HIGHEST)


@triton.jit
def round_up(lower, excess, gap, bits):
    """One code more where the rest is larger than a random part of the gap."""
    dither = (bits & 0xFFFF).to(tl.int32).to(tl.float32) * 0.0000152587890625 + 0.00000762939453125
    return tl.minimum(lower + (excess > dither * gap).to(tl.float32), HIGHEST)
