"""How much of the vocabulary's scores exists at a time, for the loss and for the plan of memory."""

from math import ceil

# Enough that a product is worth reading the output layer's weight for, and few enough that float32
# scores of the released vocabulary take 0.26 GB.
MOST_TOKENS = 512


def tokens_per_chunk(num_labels: int) -> int:
    """Tokens whose scores of all words exist at the same time: never those of a whole sequence."""
    return max(1, min(MOST_TOKENS, ceil(num_labels / 4)))
