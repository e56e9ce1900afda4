"""Rules about what processes have to themselves, and what they divide between them."""

from importlib.util import find_spec

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError


def check_processes_fit(run: ResolvedRun) -> None:
    """Refuse more processes than there are GPUs or, on the CPU, cores, on every host."""
    machine, num_processes = run.machine, min(run.slots)
    room, kind = (machine.num_gpus, "GPU") if machine.num_gpus else (machine.num_cores, "core")
    if num_processes > room:
        raise ConfigError(
            f"num_processes is {num_processes}, but this machine has {room} {kind}"
            f"{'s' if room > 1 else ''} and each process needs one; set num_processes to {room} or "
            "less. Machines that are not here are planned for with --dry_run --gpus 8 --gpu h20"
        )


def check_experts_divide(run: ResolvedRun) -> None:
    """Refuse expert groups that cannot hold equal shares, or reach beyond a host."""
    num_experts, num_processes = run.shape.num_experts, run.host_divisor
    if run.expert_size > 1 and not num_experts:
        raise ConfigError(
            f"expert_parallel_size is {run.expert_size}, and this model has no routed experts to "
            "split; set it to 1, or to auto"
        )
    fitting = [
        size
        for size in range(1, num_processes + 1)
        if num_experts % size == 0 and num_processes % size == 0
    ]
    if run.expert_size not in fitting:
        raise ConfigError(
            f"expert_parallel_size is {run.expert_size}; it must divide the model's {num_experts} "
            "experts, and num_processes of each machine, because tokens go to experts inside of "
            f"one: set {' or '.join(map(str, fitting))}"
        )


def check_sequence_size(run: ResolvedRun) -> None:
    """Refuse groups of ranks that cannot share rows and heads equally, or that nobody would fill.

    A group that is larger than the number of key-value heads repeats them.
    """
    size, length = run.sequence_size, run.config.data.max_seq_length
    num_heads, num_key_value_heads = run.shape.num_attention_heads, run.shape.num_key_value_heads
    fitting = [
        other
        for other in range(1, min(run.num_ranks, num_heads) + 1)
        if run.num_ranks % other == 0
        and num_heads % other == 0
        and (num_key_value_heads % other == 0 or other % num_key_value_heads == 0)
    ]
    if size not in fitting:
        raise ConfigError(
            f"sequence_parallel_size is {size}; it must divide the number of processes, "
            f"{run.num_ranks}, and the model's {num_heads} attention heads, and divide or be a "
            f"multiple of its {num_key_value_heads} key-value heads, so that each process has "
            f"whole heads: set {' or '.join(map(str, fitting))}"
        )
    if size > length:
        raise ConfigError(
            f"sequence_parallel_size is {size} and max_seq_length {length}, so that a process "
            "would have no token of a row; lower sequence_parallel_size"
        )


def check_attention_kernels(run: ResolvedRun) -> None:
    """Refuse to demand flash-attn where it cannot compute: in float32, or without a GPU."""
    if run.config.model.use_flash_attn is not True:
        return
    if not run.is_on_gpu:
        raise ConfigError("use_flash_attn is true, but there is no GPU; use auto or false")
    if not run.is_bf16:
        raise ConfigError(
            "use_flash_attn is true and bf16 is false; flash-attn computes in 16 bits only: use "
            "--bf16, or --use_flash_attn auto"
        )


def check_fused_kernels(run: ResolvedRun) -> None:
    """Refuse kernels that write over what selective recomputation keeps (model/fused.py)."""
    model, train = run.config.model, run.config.train
    if model.use_liger_kernel and train.gradient_checkpointing == "selective":
        raise ConfigError(
            "use_liger_kernel is true and gradient_checkpointing selective; Liger's rope and "
            "SwiGLU write over results of projections, which selective recomputation keeps for a "
            "second run: use --gradient_checkpointing true, or --use_liger_kernel false"
        )


def check_attention_package(run: ResolvedRun) -> None:
    """Refuse to demand kernels that are not installed."""
    is_installed = any(map(find_spec, ("flash_attn", "flash_attn_interface")))
    if run.config.model.use_flash_attn is True and not is_installed:
        raise ConfigError(
            "use_flash_attn is true, but flash-attn is not installed; install it with "
            "`pip install flash-attn --no-build-isolation`, or use auto"
        )
