"""8-bit AdamW on shared master weights: bfloat16 weights that are their own master copy.

- Moments are block-wise quantised states of 8 and 7 bits (`optim/blockwise_states.py`), below two
  bytes a parameter, written with stochastic rounding.
- Weights are updated with stochastic rounding too. At fine-tuning rates a step is smaller than half
  the distance to the next bfloat16 number, and rounding to the nearest would undo nearly every
  update.
- All random bits are a hash of (key, step, position), not of a generator's state: a resumed run
  draws the same ones, on any device, and whatever the slices in which a parameter is worked on.

Arithmetic is float32, in slices, so that its temporaries stay small beside the weights.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hunyuan_train.one_copy import copy_together
from hunyuan_train.optim.blockwise_states import (
    Blocks,
    BlockwiseState,
    block_slices,
    encode_stochastically,
)
from hunyuan_train.optim.lean_memory import LEAN_BLOCK

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"  # torch's names
MOMENT_DTYPES = {FIRST_MOMENT: torch.int8, SECOND_MOMENT: torch.uint8}
# Share of weights that the kernel may round otherwise: its logarithms differ in their last bit.
MOST_THAT_DIFFER = 1e-4
# Parameters that it is tried on, as the released model's partitions have them: of many blocks and
# of one, with and without a rest; weights, and what keeps a float32 master.
TRIED = (
    (400 * LEAN_BLOCK, torch.bfloat16),
    (12 * LEAN_BLOCK + 513, torch.bfloat16),
    (16 * LEAN_BLOCK, torch.float32),
    (512, torch.float32),
    (13, torch.float32),
)
Settings = tuple[Any, ...]  # of a group at a step


class LeanAdamW(Optimizer):
    """AdamW with decoupled weight decay, for flat bfloat16 or float32 parameters.

    A float32 parameter is updated exactly; its moments are coded all the same.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "key": ""}
        super().__init__(params, defaults)
        self.num_rounded = 0  # bfloat16 weights updated since `take_moved`
        self.moved: Tensor | None = None  # how many of them changed: int64, on their device
        self.gradient_scale = 1.0  # by which gradients are multiplied, as they are clipped
        self.update_flat: Callable[..., Tensor] | None = None  # a parameter at once, by a kernel
        self.sent: dict[Settings, Sent] = {}  # what this step's updates need on the device

    def compile_update(self, device: torch.device) -> None:
        """Let one kernel do the update of a parameter (`optim/lean_kernel.py`), compiled now.

        It computes the same, random bits included, and reads and writes ten bytes a weight. That is
        tried on parameters of each kind before it is used.

        Raises:
            RuntimeError, OSError, ImportError, SubprocessError: triton is not there, or cannot
                compile here, or what it made computes something else. The update then stays as it
                was.
        """
        from hunyuan_train.optim.lean_kernel import update_flat  # noqa: PLC0415  with GPUs only

        for number, dtype in TRIED:
            compare_updates(*(updated(one, device, number, dtype) for one in (None, update_flat)))
        self.update_flat = update_flat

    def start_state(self, flat: Tensor, step: int = 0) -> None:
        """Give a flat parameter its state, of zeros, after a number of steps."""
        self.state[flat] = {"step": step} | {
            name: BlockwiseState.zeros(flat.numel(), dtype, flat.device)
            for name, dtype in MOMENT_DTYPES.items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: not supported; torch's signature.
        """
        for group in self.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._update(flat, group)

    def take_moved(self) -> tuple[int, int]:
        """Of the bfloat16 weights updated since the last call: how many changed, and how many all.

        Both are local. Waits for the device.
        """
        moved = 0 if self.moved is None else int(self.moved)
        counts = (moved, self.num_rounded)
        self.moved, self.num_rounded = None, 0
        return counts

    def _update(self, flat: Tensor, group: dict[str, Any]) -> None:
        if not self.state[flat]:  # the engine may have looked, which leaves an empty one
            self.start_state(flat)
        assert flat.grad is not None
        state = self.state[flat]
        state["step"] += 1
        sent = self._send(group, state["step"], flat.device)
        moments = [state[name] for name in MOMENT_DTYPES]
        weights, gradients = flat.detach(), flat.grad.view(-1)
        if self.update_flat:
            moved = self.update_flat(weights, gradients, moments, sent.seed_at(0), sent.numbers)
            self._count(weights, moved)
            return
        for first_block, rows, row_gradients in block_slices(weights, gradients):
            blocks = [moment.blocks(first_block, rows.shape) for moment in moments]
            seed = sent.seed_at(first_block * LEAN_BLOCK)
            self._count(rows, update_blocks(rows, row_gradients, blocks, seed, sent.numbers))

    def _count(self, weights: Tensor, moved: Tensor) -> None:
        """Add up how many of the weights that take stochastic rounding have changed."""
        if weights.dtype == torch.bfloat16:
            self.moved = moved if self.moved is None else self.moved + moved
            self.num_rounded += weights.numel()

    def _send(self, group: dict[str, Any], step: int, device: torch.device) -> "Sent":
        """What a group's update needs, sent for all groups in one copy that nothing waits for."""
        scale = self.gradient_scale
        wanted = group_settings(group, step, scale, device)
        if wanted not in self.sent:
            settings = [group_settings(one, step, scale, device) for one in self.param_groups]
            rows = [step_numbers(one, step, scale) for one in self.param_groups]
            seeds = [split_seed(random_seed(one["key"], step)) for one in self.param_groups]
            arrays = [np.array(rows, dtype=np.float32), np.array(seeds, dtype=np.int32)]
            numbers, halves = copy_together(arrays, device)
            sent = [Sent(row, *pair) for row, pair in zip(numbers, halves, strict=True)]
            self.sent = dict(zip(settings, sent, strict=True))
        return self.sent[wanted]


class Sent(NamedTuple):
    """What one group's update needs of one step, on the device."""

    numbers: Tensor  # of `step_numbers`: [9], float32
    low: Tensor  # half of the seed: int32 scalars
    high: Tensor

    def seed_at(self, start: int) -> tuple[Tensor, Tensor]:
        """The seed for elements from a position on."""
        return (self.low + wrap_int32(start) if start else self.low), self.high


def group_settings(
    group: dict[str, Any], step: int, scale: float, device: torch.device
) -> Settings:
    """All that a group's update depends on beside its tensors."""
    names = ("key", "lr", "betas", "eps", "weight_decay")
    return (step, scale, device, *(group[name] for name in names))


def updated(
    update: Callable[..., Tensor] | None,
    device: torch.device,
    num_elements: int,
    dtype: torch.dtype,
) -> Tensor:
    """Random weights after three steps with an update, or with the plain one: [elements]."""
    shape = torch.Size([num_elements])
    weights, gradients = (
        (random_bits(shape, seed, 0, device) * 1e-11).to(dtype) for seed in (1, 2)
    )
    optimizer = LeanAdamW([{"params": [weights]}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    optimizer.update_flat = update
    weights.grad = gradients
    for _ in range(3):
        optimizer.step()
    return weights


def compare_updates(plain: Tensor, fused: Tensor) -> None:
    """Refuse another update.

    Args:
        plain: weights after some steps: [elements].
        fused: those of the other.

    Raises:
        RuntimeError: too many differ, or float32 ones by more than a rounding of their moments.
    """
    share = float((plain != fused).float().mean())
    if plain.dtype == torch.bfloat16 and share > MOST_THAT_DIFFER:
        raise RuntimeError(f"compiled, it gives {share:.1%} of the weights another value")
    if plain.dtype == torch.float32:
        is_close = torch.isclose(plain, fused, rtol=1e-5, atol=1e-7)
        if float((~is_close).float().mean()) > MOST_THAT_DIFFER:
            raise RuntimeError(f"compiled, it gives {share:.1%} of float32 weights another value")


def step_numbers(group: dict[str, Any], step: int, scale: float) -> list[float]:
    """What the update of one parameter group needs at a step, with so scaled gradients."""
    beta1, beta2 = group["betas"]
    rate = group["lr"]
    corrected_rate, corrected_root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    decay = rate * group["weight_decay"]
    moving = [beta1, 1 - beta1, beta2, 1 - beta2]
    return [*moving, corrected_rate, corrected_root, decay, group["eps"], scale]


def update_blocks(
    weights: Tensor,
    gradients: Tensor,
    moments: list[Blocks],
    seed: tuple[Tensor, Tensor],
    numbers: Tensor,
) -> Tensor:
    """One AdamW step, in place, of blocks [blocks, elements] of one parameter.

    Args:
        weights: bfloat16, which take stochastic rounding, or float32, which are exact.
        gradients: of any float dtype.
        moments: the first and the second.
        seed: both halves of it, int32 scalars; the lower one with the position of the first
            element added.
        numbers: of `step_numbers`, float32.

    Returns:
        The number of weights that changed: an int64 scalar.
    """
    # The lower half rounds the weights, the upper half the second moment, the middle the first.
    bits = hash_positions(weights.shape, *seed, weights.device)
    beta1, rest1, beta2, rest2, rate, root, decay, epsilon, scale = numbers.unbind()
    gradients = gradients.float() * scale
    first = moments[0].decode(weights.shape[1]) * beta1 + gradients * rest1
    second = moments[1].decode(weights.shape[1]) * beta2 + gradients.square() * rest2
    exact = weights.float()
    exact = exact - (rate * first / (second.sqrt() / root + epsilon) + decay * exact)
    updated = exact if weights.dtype == torch.float32 else round_stochastically(exact, bits)
    num_moved = (updated != weights).sum()
    weights.copy_(updated)
    for blocks, values, shift in zip(moments, (first, second), (8, 16), strict=True):
        dither = ((bits >> shift) & 0xFFFF).float() * 2**-16 + 2**-17
        blocks.replace(*encode_stochastically(values, blocks.codes.dtype, dither))
    return num_moved


def round_stochastically(exact: Tensor, bits: Tensor) -> Tensor:
    """Stochastic rounding of float32 to one of its two bfloat16 neighbours, right on average.

    Args:
        exact: finite, float32, of any shape.
        bits: random, int32, [as exact], of which the lower 16 are used: bfloat16 is float32 without
            its lower 16 bits, so that adding random ones carries as often as what is cut off says.
    """
    raised = exact.view(torch.int32) + (bits & 0xFFFF)
    return (raised & -0x10000).view(torch.float32).bfloat16()


def random_seed(key: str, step: int) -> int:
    """64 bits that belong to one parameter at one step."""
    return int.from_bytes(hashlib.blake2b(f"{key}:{step}".encode(), digest_size=8).digest())


def random_bits(shape: torch.Size, seed: int, start: int, device: torch.device) -> Tensor:
    """Random bits of the elements from position `start` on: int32, of the given shape."""
    low, high = split_seed(seed)
    return hash_positions(shape, wrap_int32(low + start), high, device)


def split_seed(seed: int) -> tuple[int, int]:
    """The lower and the upper half of 64 bits, signed."""
    return wrap_int32(seed), wrap_int32(seed >> 32)


def hash_positions(
    shape: torch.Size, low: Tensor | int, high: Tensor | int, device: torch.device
) -> Tensor:
    """A hash of each element's position and a seed: int32, of the given shape.

    https://github.com/skeeto/hash-prospector (lowbias32), with half of the seed added before and
    half mixed in between. The halves are tensors where code is compiled once for all seeds.
    """
    bits = torch.arange(shape.numel(), dtype=torch.int32, device=device).add_(low)
    bits = _mix(bits, 16).mul_(0x7FEB352D).bitwise_xor_(high)
    bits = _mix(bits, 15).mul_(wrap_int32(0x846CA68B))
    return _mix(bits, 16).view(shape)


def _mix(bits: Tensor, shift: int) -> Tensor:
    shifted = (bits >> shift) & ((1 << (32 - shift)) - 1)  # without the sign that >> repeats
    return bits.bitwise_xor_(shifted)


def wrap_int32(value: int) -> int:
    """The signed 32-bit number with a value's lower 32 bits."""
    return (value + 2**31) % 2**32 - 2**31
