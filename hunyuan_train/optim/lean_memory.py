"""Bytes of the states of lean (8-bit AdamW), and of the temporaries of its update.

Apart from `optim/lean.py`, so that plans are made without torch.
"""

LEAN_BLOCK = 2048  # elements of a state that share one float32 scale
SLICE_BLOCKS = 2048  # worked on at once: 4 M elements, 17 MB for each float32 temporary
SLICE_ELEMENTS = SLICE_BLOCKS * LEAN_BLOCK
PACKED_GROUP = 8  # codes of seven bits that share seven bytes
NUM_TEMPORARIES = 15  # float32, as long as a slice, at one time; compiled, a third of that


def num_blocks(num_elements: int) -> int:
    """Blocks, and so scales, of a flat state."""
    return -(-num_elements // LEAN_BLOCK)


def lean_state_bytes(num_elements: int) -> int:
    """Bytes of both moments of one flat partition of one parameter, padding included."""
    return num_elements + packed_bytes(num_elements) + 2 * 4 * num_blocks(num_elements)


def lean_temporary_bytes(num_elements: int) -> int:
    """Bytes that the update of one flat partition takes beside weights, gradients and states."""
    return 4 * NUM_TEMPORARIES * min(SLICE_ELEMENTS, num_elements)


def packed_bytes(num_codes: int) -> int:
    """Bytes of codes of seven bits; the last group is filled up."""
    return -(-num_codes // PACKED_GROUP) * (PACKED_GROUP - 1)
