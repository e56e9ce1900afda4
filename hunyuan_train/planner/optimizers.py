"""Bytes that each optimizer keeps for trained elements, beside weights and gradients."""

from dataclasses import dataclass

from hunyuan_train.optim.lean_memory import lean_bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Between two steps."""

    master: int
    states: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.master + self.states


def kept_bytes(optimizer: str, num_elements: int, *, is_exact: bool = False) -> Kept:
    """Master weights and states.

    All but lean keep float32 master weights, also of float32 weights: both stages clone them
    (stage3.py `_create_fp32_partitions` compares a device with its name, which never are equal).
    AdamW, on the device or offloaded, has two float32 states.

    Args:
        optimizer: by its name in the settings.
        num_elements: that are updated; for lean, of one rank's range of one parameter.
        is_exact: a vector or a router, of which lean keeps float32 master weights.
    """
    if optimizer == "lean":
        held = lean_bytes(num_elements, is_exact=is_exact)
        return Kept(held.master, held.states)
    return Kept(4 * num_elements, 0 if optimizer == "sgd" else 8 * num_elements)
