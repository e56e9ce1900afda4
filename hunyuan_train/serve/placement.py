"""How a model is laid over the GPUs of a server, and how long a dialogue may get: by its bytes."""

from dataclasses import dataclass

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.serve.errors import ServeError

USED_SHARE = 0.9  # of a GPU's memory that servers take by default
RUNTIME_BYTES = 4 * 10**9  # of each GPU: CUDA graphs, activations, communication
CACHE_BYTES_PER_NUMBER = 2  # keys and values in bfloat16
# Weights of an expert are multiplied in blocks of this width, also where they are quantised.
EXPERT_BLOCK = 128
SHORTEST_CONTEXT = 4096  # tokens; less is no use to serve


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One copy of the model."""

    tensor_parallel_size: int
    splits_experts: bool  # whole experts on each GPU, instead of a part of every one
    context_length: int  # tokens of a dialogue
    num_spare_gpus: int


def place(
    shape: ModelShape,
    *,
    weight_bytes: int,
    num_gpus: int,
    gpu_memory: int,
    tensor_parallel_size: int | None,
    context_length: int | None,
) -> Placement:
    """Lay a model over as few GPUs as hold its weights and one dialogue of full length.

    Args:
        shape: of the model.
        weight_bytes: of its files.
        num_gpus: that there are; 0: it is served on the CPU.
        gpu_memory: bytes of each; 0: unknown, which is not checked.
        tensor_parallel_size: that the user wants; None: found.
        context_length: tokens that the user wants; None: as many as the model takes, or as fit.

    Raises:
        ServeError: it does not fit, or cannot be split so.
    """
    longest = context_length or shape.context_length
    if longest > shape.context_length:
        raise ServeError(
            f"max_model_len is {longest} and the model takes {shape.context_length} tokens; set "
            "it to that or less"
        )
    if not num_gpus:
        return Placement(
            tensor_parallel_size=1, splits_experts=False, context_length=longest, num_spare_gpus=0
        )
    if tensor_parallel_size is not None:
        sizes = [_check_size(shape, tensor_parallel_size, num_gpus)]
    else:
        sizes = [size for size in range(1, num_gpus + 1) if _can_split(shape, size)]
    fitting = [
        (size, fit_context(shape, weight_bytes, gpu_memory, size) if gpu_memory else longest)
        for size in sizes
    ]
    whole = [size for size, tokens in fitting if tokens >= longest]
    if whole:
        return _make(shape, whole[0], longest, num_gpus)
    size, tokens = max(fitting, key=lambda pair: pair[1])
    if tokens < min(SHORTEST_CONTEXT, longest) or context_length is not None:
        raise ServeError(
            f"the weights take {weight_bytes / 1e9:.0f} GB, and {size} GPUs of "
            f"{gpu_memory / 1e9:.0f} GB have room for {max(tokens, 0)} tokens beside them; take "
            "more GPUs, set --max_model_len, or quantize the model"
        )
    return _make(shape, size, tokens, num_gpus)


def fit_context(shape: ModelShape, weight_bytes: int, gpu_memory: int, size: int) -> int:
    """Tokens of keys and values that find room beside the weights."""
    room = int(USED_SHARE * gpu_memory) - RUNTIME_BYTES - weight_bytes // size
    return room // cache_bytes(shape, size)


def cache_bytes(shape: ModelShape, size: int) -> int:
    """Bytes of one token's keys and values on one of `size` GPUs."""
    heads = -(-shape.num_key_value_heads // size)  # a head is copied where there are too few
    numbers = 2 * shape.num_hidden_layers * heads * shape.head_dim
    return numbers * CACHE_BYTES_PER_NUMBER


def _make(shape: ModelShape, size: int, context_length: int, num_gpus: int) -> Placement:
    width = shape.intermediate_size // size
    is_ragged = bool(shape.num_experts) and size > 1 and bool(width % EXPERT_BLOCK)
    return Placement(
        tensor_parallel_size=size,
        splits_experts=is_ragged and not shape.num_experts % size,
        context_length=context_length,
        num_spare_gpus=num_gpus - size,
    )


def _can_split(shape: ModelShape, size: int) -> bool:
    heads, cached = shape.num_attention_heads, shape.num_key_value_heads
    shares_heads = not (cached % size and size % cached)
    return not heads % size and shares_heads and not shape.intermediate_size % size


def _check_size(shape: ModelShape, size: int, num_gpus: int) -> int:
    if not 1 <= size <= num_gpus:
        raise ServeError(f"tensor_parallel_size is {size}; there are {num_gpus} GPUs")
    if not _can_split(shape, size):
        raise ServeError(
            f"tensor_parallel_size is {size}, which does not divide the model's "
            f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} heads of keys and "
            f"expert width of {shape.intermediate_size}; take a power of two"
        )
    return size
