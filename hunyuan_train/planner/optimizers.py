"""Bytes that each optimizer keeps for a number of trained elements."""

from dataclasses import dataclass

LEAN_BLOCK = 2048  # elements of an 8-bit state that share one float32 scale


@dataclass(frozen=True, slots=True)
class OptimizerBytes:
    """Between two steps, beside weights and gradients."""

    master: int
    states: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.master + self.states


def lean_bytes(num_elements: int, *, is_exact: bool, element_bytes: int) -> OptimizerBytes:
    """Two 8-bit states, a float32 scale per block each; the weights are their own master.

    Args:
        num_elements: of one rank's range of one parameter.
        is_exact: a norm, a bias or a router, whose master weights stay float32.
        element_bytes: of a weight; a float32 one is always its own master.
    """
    num_blocks = -(-num_elements // LEAN_BLOCK)
    master = 4 * num_elements if is_exact and element_bytes == 2 else 0
    return OptimizerBytes(master, 2 * (num_elements + 4 * num_blocks))


def plain_bytes(optimizer: str, num_elements: int) -> OptimizerBytes:
    """Float32 master weights and, of AdamW, two float32 states.

    Float32 weights are copied too: both stages clone them (stage3.py `_create_fp32_partitions`
    compares a device with its name, which never are equal).

    Args:
        optimizer: adamw, offload or sgd.
        num_elements: that this rank updates.
    """
    return OptimizerBytes(4 * num_elements, 0 if optimizer == "sgd" else 8 * num_elements)
