"""The forms in which frozen experts are kept: bytes, and how many are dequantised at a time.

`--expert_weights` names them, the planner counts them, and the layer of experts is made by them. No
torch is needed here.
"""

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.compression_scheme import BLOCK, Scheme

# Of one projection of a rank's experts, dequantised at once. A piece is a range of its rows or
# columns for all experts, so that no number of tokens has to come to the CPU. Every piece's product
# reads all rows: of half the size, with 64 experts, that takes an H100 longer than to multiply.
PIECE_BYTES = 2**28
INT4_GROUP = 32  # 4.5 bits a weight, as NF4 has them; rounding to nearest loses more in larger ones
NF4_GROUPS = (64, 32)  # bitsandbytes' own, and the next smaller for widths that it does not divide
# From the one that loses least to the one that loses most (docs/one_gpu_adapters.md).
GENTLEST_FIRST = ("bf16", "fp8", "nf4", "int4")

# KL divergence from the base as it came, of the mean over held-out tokens, in nats. Beyond it an
# adapter spends much of what it learns on making up for its base.
MOST_DIVERGENCE = 0.05

# Bytes of an element at the fullest moment, beside its codes, while torch's operators dequantise it
# (model/compressed_values.py decode): of a scheme by its strategy, in bfloat16 and in float32. On
# GPUs a kernel makes nothing but the result (model/decoding_kernel.py).
_NF4 = {2: 6, 4: 8}
_INT4 = {2: 3, 4: 5}
_FP8 = {2: 2, 4: 4}
DECODING_BYTES = {
    "nf4": _NF4,
    "group": _INT4,
    "tensor": _FP8,
    "channel": _FP8,
    "block": {2: 6, 4: 12},  # and scales as large as the weights, twice in part
}


def scheme_of(expert_weights: str, shape: ModelShape) -> Scheme | None:
    """How `--expert_weights` keeps the experts of a model; None: as they are.

    Raises:
        ConfigError: its experts are too narrow for groups of that form, or there are none.
    """
    if expert_weights == "base":
        return Scheme.titled(shape.stored_as)
    if expert_weights == "fp8":
        return Scheme("channel")
    sizes = {"int4": (INT4_GROUP,), "nf4": NF4_GROUPS}.get(expert_weights)
    if sizes is None:
        return None
    widths = expert_widths(shape)
    for size in sizes:
        if all(width % size == 0 for width in widths):
            return Scheme("nf4" if expert_weights == "nf4" else "group", size)
    raise ConfigError(
        f"expert_weights is {expert_weights}, whose groups of {sizes[-1]} inputs do not divide the "
        f"widths {', '.join(map(str, widths))} of this model's experts; choose fp8"
    )


def expert_widths(shape: ModelShape) -> list[int]:
    """Inputs of a routed expert's projections."""
    return sorted({one.shape[-1] for one in model_parameters(shape) if one.kind is Kind.EXPERT})


def piece_length(length: int, other_bytes: int) -> int:
    """Rows or columns that are dequantised at once: whole blocks, and at least one.

    Args:
        length: of the dimension that is cut.
        other_bytes: of one row or column of all experts, dequantised.
    """
    fitting = PIECE_BYTES // max(1, other_bytes)
    if fitting >= length:
        return length
    return min(length, max(BLOCK, fitting - fitting % BLOCK))
