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
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hunyuan_train.optim.blockwise_states import (
    Blocks,
    BlockwiseState,
    block_slices,
    encode_stochastically,
)
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, SLICE_BLOCKS, SLICE_ELEMENTS

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"  # torch's names
MOMENT_DTYPES = {FIRST_MOMENT: torch.int8, SECOND_MOMENT: torch.uint8}
# Share of weights that a compiled update may round otherwise: its sums differ in their last bit.
MOST_THAT_DIFFER = 1e-4


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
        self.update_whole = update_blocks  # slices of full size

    def compile_update(self, device: torch.device) -> None:
        """Let torch fuse the update of whole slices into a few kernels, compiled here and now.

        They compute the same, without some sixty temporaries, which is tried on a slice before they
        are used. Slices of other sizes stay as they are: each would have to be compiled by itself.
        TORCH_COMPILE_DISABLE=1 leaves all so.

        Raises:
            RuntimeError, OSError, ImportError, SubprocessError: torch, or Triton below it, cannot
                compile here, or what they made computes something else. The update then stays as
                it was.
        """
        compiled = torch.compile(update_blocks, dynamic=False)
        plain, fused = (updated_slice(one, device) for one in (update_blocks, compiled))
        share = float((plain != fused).float().mean())
        if share > MOST_THAT_DIFFER:
            raise RuntimeError(f"compiled, it gives {share:.1%} of the weights another value")
        self.update_whole = compiled

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
        numbers = step_numbers(group, state["step"]).to(flat.device)
        seed = random_seed(group["key"], state["step"])
        moments = [state[name] for name in MOMENT_DTYPES]
        for first_block, weights, gradients in block_slices(flat.detach(), flat.grad.view(-1)):
            blocks = [moment.blocks(first_block, weights.shape) for moment in moments]
            bits = random_bits(weights.shape, seed, first_block * LEAN_BLOCK, flat.device)
            is_whole = weights.shape == (SLICE_BLOCKS, LEAN_BLOCK)
            update = self.update_whole if is_whole else update_blocks
            moved = update(weights, gradients, blocks, bits, numbers)
            if weights.dtype == torch.bfloat16:
                self.moved = moved if self.moved is None else self.moved + moved
                self.num_rounded += weights.numel()


def updated_slice(update: Callable[..., Tensor], device: torch.device) -> Tensor:
    """A slice of random weights after two steps with an update: [elements], bfloat16."""
    shape = torch.Size([SLICE_ELEMENTS])
    weights, gradients = (
        (random_bits(shape, seed, 0, device) * 1e-11).bfloat16() for seed in (1, 2)
    )
    optimizer = LeanAdamW([{"params": [weights]}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    optimizer.update_whole = update
    weights.grad = gradients
    for _ in range(2):
        optimizer.step()
    return weights


def step_numbers(group: dict[str, Any], step: int) -> Tensor:
    """What the update of one parameter group needs at a step, as one float32 tensor: [8]."""
    beta1, beta2 = group["betas"]
    rate = group["lr"]
    corrected_rate, corrected_root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    decay = rate * group["weight_decay"]
    return torch.tensor(
        [beta1, 1 - beta1, beta2, 1 - beta2, corrected_rate, corrected_root, decay, group["eps"]]
    )


def update_blocks(
    weights: Tensor,
    gradients: Tensor,
    moments: list[Blocks],
    bits: Tensor,
    numbers: Tensor,
) -> Tensor:
    """One AdamW step, in place, of blocks [blocks, elements] of one parameter.

    Args:
        weights: bfloat16, which take stochastic rounding, or float32, which are exact.
        gradients: of any float dtype.
        moments: the first and the second.
        bits: random, int32: the lower half rounds the weights, the upper half the second moment,
            the middle the first.
        numbers: of `step_numbers`.

    Returns:
        The number of weights that changed: an int64 scalar.
    """
    beta1, rest1, beta2, rest2, rate, root, decay, epsilon = numbers.unbind()
    gradients = gradients.float()
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
        exact: finite, float32.
        bits: random, int32, of which the lower 16 are used: bfloat16 is float32 without its lower
            16 bits, so that adding random ones carries as often as what is cut off says.
    """
    raised = exact.view(torch.int32) + (bits & 0xFFFF)
    return (raised & -0x10000).view(torch.float32).bfloat16()


def random_seed(key: str, step: int) -> int:
    """64 bits that belong to one parameter at one step."""
    return int.from_bytes(hashlib.blake2b(f"{key}:{step}".encode(), digest_size=8).digest())


def random_bits(shape: torch.Size, seed: int, start: int, device: torch.device) -> Tensor:
    """Random bits of the elements from position `start` on: int32, of the given shape.

    A hash of the position: https://github.com/skeeto/hash-prospector (lowbias32), with half of the
    seed added before and half mixed in between.
    """
    low, high = wrap_int32(seed + start), wrap_int32(seed >> 32)
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
