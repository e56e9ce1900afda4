"""Bytes that each optimizer keeps per trained parameter, between two steps, with bfloat16 weights.

One place for the engine's side (which checks it against what it holds) and for plans made without
torch. Sources: DeepSpeed's ZeRO buffers (`runtime/zero/stage3.py`), `optim/lean.py`, and
`parallel/shared_masters.py`.
"""

from dataclasses import dataclass

LEAN_BLOCK = 2048  # elements of a state that share one float32 scale
SLICE_BLOCKS = 2048  # worked on at once: 4 M elements, 17 MB for each float32 temporary
PACKED_GROUP = 8  # codes of seven bits that share seven bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerBytes:
    """What a number of trained parameters costs; host bytes where the optimizer is offloaded."""

    weights: int
    gradients: int
    master: int
    states: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.master + self.states


def lean_bytes(num_elements: int, *, is_exact: bool = False) -> OptimizerBytes:
    """Bytes of one flat partition of one parameter under `--optimizer lean`.

    Args:
        num_elements: of the partition, padding included.
        is_exact: a norm, a bias or a router, whose master weights stay float32 beside the bfloat16
            ones; of all others the weights are their own master.
    """
    num_blocks = -(-num_elements // LEAN_BLOCK)
    return OptimizerBytes(
        weights=2 * num_elements,
        gradients=2 * num_elements,
        master=4 * num_elements if is_exact else 0,
        states=num_elements + packed_bytes(num_elements) + 2 * 4 * num_blocks,
    )


def packed_bytes(num_codes: int) -> int:
    """Bytes of codes of seven bits; the last group is filled up."""
    return -(-num_codes // PACKED_GROUP) * (PACKED_GROUP - 1)
