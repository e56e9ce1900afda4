"""Rules about ranks that share rows (`sequence_parallel_size`) and the lengths they are for."""

from typing import Any

from hunyuan_train.config.deepspeed_config import read_deepspeed_file
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError

# The engine's own ways to share rows: they refuse split experts, or mix packed documents.
ENGINE_SECTIONS = ("sequence_parallel_size", "data_parallel_size")


def check_sequence_size(
    config: RunConfig, *, num_heads: int, num_key_value_heads: int, num_ranks: int
) -> None:
    """Refuse groups of ranks that cannot share rows and heads equally, or that nobody would fill.

    Args:
        config: resolved.
        num_heads: heads of queries.
        num_key_value_heads: heads of keys and values; a larger group repeats them.
        num_ranks: processes on all machines.

    Raises:
        ConfigError: with the sizes that are possible.
    """
    size, length = config.parallel.sequence_parallel_size, config.data.max_seq_length
    fitting = [
        other
        for other in range(1, num_ranks + 1)
        if num_ranks % other == 0
        and num_heads % other == 0
        and (num_key_value_heads % other == 0 or other % num_key_value_heads == 0)
    ]
    if size not in fitting:
        raise ConfigError(
            f"sequence_parallel_size is {size}; it must divide the number of processes, "
            f"{num_ranks}, and the model's {num_heads} attention heads, and divide or be a "
            f"multiple of its {num_key_value_heads} key-value heads, so that each process has "
            f"whole heads: set {' or '.join(map(str, fitting))}"
        )
    if size > length:
        raise ConfigError(
            f"sequence_parallel_size is {size} and max_seq_length {length}, so that a process "
            "would have no token of a row; lower sequence_parallel_size"
        )


def check_engine_sequences(content: dict[str, Any], path: str) -> None:
    """Refuse a DeepSpeed file that lets the engine share rows."""
    for name in ENGINE_SECTIONS:
        if name in content:
            raise ConfigError(
                f"{path} sets {name}, by which the engine would share rows itself: it refuses to "
                "where experts are split, and lets packed documents see each other; delete it and "
                "use --sequence_parallel_size"
            )


def check_moe_chunks(config: RunConfig) -> None:
    """Refuse chunks that would save nothing, or that nobody could fill."""
    train, size = config.train, config.parallel.sequence_parallel_size
    num_tokens = train.per_device_train_batch_size * config.data.max_seq_length // size
    if train.moe_chunks > max(1, num_tokens):
        raise ConfigError(
            f"moe_chunks is {train.moe_chunks} and a process has {num_tokens} tokens at most, so "
            "that some chunks would always be empty and yet wait for all processes; 8 save most of "
            "what chunks can: lower moe_chunks"
        )
    if train.moe_chunks > 1 and train.gradient_checkpointing is not True:
        how = str(train.gradient_checkpointing).lower()
        raise ConfigError(
            f"moe_chunks is {train.moe_chunks} and gradient_checkpointing {how}; what the experts "
            "compute would be kept for all chunks until the backward pass, so that chunks save "
            "nothing: use --gradient_checkpointing true, or --moe_chunks 1"
        )


def check_sequences(config: RunConfig) -> None:
    """Run the rules that need no model."""
    path = config.parallel.deepspeed
    check_engine_sequences(read_deepspeed_file(path), path)
    check_moe_chunks(config)
