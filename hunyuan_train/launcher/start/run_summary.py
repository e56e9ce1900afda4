"""Says what a run will do, before it does it."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.data.batches.loader import BatchSampler, DataShard
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.inspection.describe import describe_counts, describe_dataset
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.launcher.start.prepare import PreparedRun
from hunyuan_train.planner.text import describe_split
from hunyuan_train.trainer.schedule import count_steps


def show_summary(prepared: PreparedRun, console: Console) -> None:
    """Print one line per decision."""
    for name, value in summarise_run(prepared).items():
        console.print(Text.assemble((f"{name:<10} ", "bold"), value), soft_wrap=True)


def summarise_run(prepared: PreparedRun) -> dict[str, str]:
    """What is trained, on what, for how long, and where the results go."""
    run, config = prepared.run, prepared.run.config
    is_preset = config.model.model_name_or_path in PRESETS
    counts = count_parameters(run.shape)
    lines = {
        "model": f"{config.model.model_name_or_path}: {counts.total:,} parameters, "
        f"{counts.active:,} of them active for a token"
        + (f"; random weights from seed {config.train.seed}" if is_preset else ""),
        "training": describe_method(run),
        "processes": f"{describe_hosts(run.slots)} on {'GPUs' if run.is_on_gpu else 'CPU'} in "
        f"{'bfloat16' if run.is_bf16 else 'float32'}: ZeRO stage {run.stage}, "
        f"{describe_split(run)}",
        "data": f"{config.data.train_data_file}: {describe_counts(prepared.train.summary)}",
    }
    lines |= describe_dataset(prepared.train, config.data.history, prepared.tokenizer)
    if prepared.evaluation:
        source = (
            config.data.eval_data_file
            or f"{config.data.eval_fraction:.0%} of it, one question at least"
        )
        lines["evaluation"] = f"{source}: {describe_counts(prepared.evaluation.summary)}"
    lines["length"] = describe_length(run, prepared.train)
    lines["output"] = config.train.output_dir
    return lines


def describe_method(run: ResolvedRun) -> str:
    """What is trained, and by which optimizer."""
    rates, lora = run.config.optimizer, run.config.lora
    what = f"adapters of rank {lora.lora_rank} on {lora.lora_target_modules}"
    return (
        f"{what if lora.use_lora else 'every parameter'} with "
        f"{run.optimizer.title}, learning rate {rates.learning_rate:g} ({rates.lr_scheduler_type})"
    )


def describe_hosts(slots: Sequence[int]) -> str:
    """How many processes, and how they are spread."""
    if len(slots) == 1:
        return str(slots[0])
    spread = f"{slots[0]} each" if len(set(slots)) == 1 else " + ".join(map(str, slots))
    return f"{sum(slots)} on {len(slots)} hosts ({spread})"


def describe_length(run: ResolvedRun, dataset: Dataset) -> str:
    """How many steps, and what one of them reads."""
    config, train = run.config, run.config.train
    shard = DataShard(
        rows=train.per_device_train_batch_size,
        num_ranks=run.num_ranks,
        rank=0,
        sequence_size=run.sequence_size,
    )
    batches = BatchSampler(
        dataset,
        shard,
        accumulation_steps=train.gradient_accumulation_steps,
        seed=train.seed,
        packing=config.data.packing,
    )
    num_steps = count_steps(train, steps_per_epoch=batches.steps_per_epoch)
    return (
        f"{num_steps:,} steps ({num_steps / batches.steps_per_epoch:.1f} epochs) of "
        f"{batches.rows_per_step} rows of up to {config.data.max_seq_length} tokens"
    )
