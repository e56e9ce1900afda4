"""Rules about precision, rows, rates, optimizer, and what is kept for the backward pass."""

from hunyuan_train.config.deepspeed_file import has_bf16_masters, offloads_parameters
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError

SCHEDULES_WITH_MIN_LR = ("cosine_with_min_lr", "wsd")


def check_precision(run: ResolvedRun) -> None:
    """Refuse float16, alone or beside bfloat16."""
    if not run.config.train.fp16:
        return
    if run.is_bf16:
        raise ConfigError(
            "fp16 is true, and this run computes in bfloat16 (bf16 is true, or auto on GPUs), in "
            "which the model was trained; a run has one precision: drop --fp16"
        )
    raise ConfigError(
        "fp16 is true; the model was trained in bfloat16 and its router overflows in float16: "
        "use --bf16, or --bf16 false for float32"
    )


def check_row_length(run: ResolvedRun) -> None:
    """Refuse rows in which a sample may be longer than the model can read."""
    length, longest = run.config.data.max_seq_length, run.shape.context_length
    if length > longest:
        raise ConfigError(
            f"max_seq_length is {length}, and {run.config.model.model_name_or_path} reads at most "
            f"{longest} tokens (its config.json); set max_seq_length to {longest} or less, and for "
            "more tokens at a time raise per_device_train_batch_size"
        )


def check_learning_rate(run: ResolvedRun) -> None:
    """Refuse a schedule that would climb, ignore its floor, or never reach its top."""
    optimizer, max_steps = run.config.optimizer, run.config.train.max_steps
    min_lr, schedule = optimizer.min_lr, optimizer.lr_scheduler_type
    if min_lr > optimizer.learning_rate:
        raise ConfigError(
            f"min_lr is {min_lr}, above learning_rate {optimizer.learning_rate}; min_lr is the "
            "absolute rate at the end of the run, often a tenth of learning_rate"
        )
    if min_lr and schedule not in SCHEDULES_WITH_MIN_LR:
        raise ConfigError(
            f"min_lr is {min_lr}, which the schedule {schedule} does not reach; use "
            f"--lr_scheduler_type {' or '.join(SCHEDULES_WITH_MIN_LR)}, or --min_lr 0"
        )
    if 0 < max_steps <= optimizer.warmup_steps:
        raise ConfigError(
            f"warmup_steps is {optimizer.warmup_steps} and max_steps {max_steps}: the learning "
            "rate would never reach its top; lower warmup_steps"
        )


def check_activations(run: ResolvedRun) -> None:
    """Refuse to offload what would be all activations of every layer."""
    train = run.config.train
    if train.activation_offload and not train.gradient_checkpointing:
        raise ConfigError(
            "activation_offload is true and gradient_checkpointing is false, so the whole of every "
            "layer would cross to host memory and back; use --gradient_checkpointing true"
        )


def check_moe_chunks(run: ResolvedRun) -> None:
    """Refuse chunks that would save nothing, or that nobody could fill."""
    train = run.config.train
    if train.moe_chunks > run.num_tokens:
        raise ConfigError(
            f"moe_chunks is {train.moe_chunks} and a process has {run.num_tokens} tokens at most, "
            "so that some chunks would always be empty and yet wait for all processes; 8 save most "
            "of what chunks can: lower moe_chunks"
        )
    if train.moe_chunks > 1 and train.gradient_checkpointing is not True:
        how = str(train.gradient_checkpointing).lower()
        raise ConfigError(
            f"moe_chunks is {train.moe_chunks} and gradient_checkpointing {how}; what the experts "
            "compute would be kept for all chunks until the backward pass, so that chunks save "
            "nothing: use --gradient_checkpointing true, or --moe_chunks 1"
        )


def check_optimizer(run: ResolvedRun) -> None:
    """Refuse an optimizer where it cannot work or does not help, and bf16 masters of others.

    Masters in bfloat16 that are rounded to the nearest lose 84 to 96 % of a fine-tuning update.
    """
    optimizer, path = run.optimizer, run.engine_path
    is_set = f"optimizer is {optimizer.name}"
    if has_bf16_masters(run.engine) and not optimizer.shares_masters:
        raise ConfigError(
            f"{path} sets bf16.bf16_master_weights_and_grads, and {is_set}: rounding to bfloat16 "
            "would lose most of each update. Use --optimizer lean, whose rounding is stochastic, "
            "or delete that key"
        )
    if optimizer.shares_masters and not run.is_bf16:
        raise ConfigError(
            f"{is_set} and bf16 is false; its weights are bfloat16 by design: use --bf16, or "
            "--optimizer adamw"
        )
    if optimizer.reason_against_adapters and run.config.lora.use_lora:
        raise ConfigError(
            f"{is_set} and use_lora is true; {optimizer.reason_against_adapters}: use "
            "--optimizer adamw"
        )
    if optimizer.shares_masters and offloads_parameters(run.engine):
        raise ConfigError(
            f"{is_set}, but {path} offloads the weights (zero_optimization.offload_param) that it "
            "updates in place: use --deepspeed auto, or --optimizer offload"
        )
