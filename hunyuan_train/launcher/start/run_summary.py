"""Says what a run will do, before it does it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hunyuan_train.checkpoint.folder import find_checkpoint
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.inspection.describe import (
    describe_counts,
    describe_dataset,
    describe_findings,
)
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.launcher.start.prepare import PreparedRun
from hunyuan_train.plain_text import count_of
from hunyuan_train.planner.gentlest import describe_form
from hunyuan_train.planner.text import describe_adapters, describe_split
from hunyuan_train.trainer.schedule import (
    check_warmup,
    describe_schedule,
    find_idle_settings,
)

# Learning rates that are usual, and the highest that needs no word, by objective and method.
USUAL_RATES = {
    ("sft", "LoRA"): ("1e-4 to 2e-4", 5e-3),
    ("sft", "full fine-tuning"): ("1e-5", 5e-3),  # a tiny model from random weights takes 1e-3
    ("preferences", "LoRA"): ("5e-6 to 1e-5", 5e-5),
    ("preferences", "full fine-tuning"): ("1e-6", 5e-6),
}
DEMO = (
    "Nothing names a model or dialogues, so this is the demo (--recipe tiny): a tiny model with "
    "random weights learns the bundled dialogues in a few minutes. Yours: train --recipe lora "
    "--model_name_or_path FOLDER_OR_NAME --train_data_file FILE; train --help lists the rest."
)


def show_demo(console: Console) -> None:
    """Say what is run where nothing was asked for."""
    console.print(DEMO, highlight=False)


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
        **({"experts": form} if (form := describe_form(run)) else {}),
        "processes": f"{describe_hosts(run.slots)} on {'GPUs' if run.is_on_gpu else 'CPU'} in "
        f"{'bfloat16' if run.is_bf16 else 'float32'}: ZeRO stage {run.stage}, "
        f"{describe_split(run)}",
        "data": f"{config.data.train_data_file}: {_count_pairs(prepared.train)}"
        f"{describe_counts(prepared.train.summary)}",
    }
    lines |= describe_dataset(prepared.train, config.data.history, prepared.tokenizer)
    if prepared.evaluation:
        source = (
            config.data.eval_data_file
            or f"{config.data.eval_fraction:.0%} of it, one question at least"
        )
        counted = _count_pairs(prepared.evaluation) + describe_counts(prepared.evaluation.summary)
        lines["evaluation"] = f"{source}: {counted}"
        if found := describe_findings(prepared.evaluation.summary):
            lines["evaluation"] += f"; {found}"
    lines["length"] = describe_length(prepared)
    lines["schedule"] = describe_schedule(
        config, prepared.length.num_steps, has_evaluation=prepared.evaluation is not None
    )
    if config.checkpoints.resume_from_checkpoint:
        lines["resume"] = describe_resume(config)
    lines["output"] = config.train.output_dir
    return lines


def describe_method(run: ResolvedRun) -> str:
    """What is minimised and trained, and by which optimizer."""
    rates, lora = run.config.optimizer, run.config.lora
    preferences = run.config.preferences
    is_sft = preferences.objective == "sft"
    objective = "" if is_sft else f"{preferences.objective} (beta {preferences.beta:g}) by "
    return objective + (
        f"{describe_adapters(lora) if lora.use_lora else 'full fine-tuning'} with "
        f"{run.optimizer.title}, learning rate {rates.learning_rate:g} ({rates.lr_scheduler_type})"
    )


def _count_pairs(data: Dataset) -> str:
    return f"{data.summary.num_samples // 2:,} pairs, which are " if data.is_paired else ""


def describe_hosts(slots: Sequence[int]) -> str:
    """How many processes, and how they are spread."""
    if len(slots) == 1:
        return str(slots[0])
    spread = f"{slots[0]} each" if len(set(slots)) == 1 else " + ".join(map(str, slots))
    return f"{sum(slots)} on {len(slots)} hosts ({spread})"


def describe_length(prepared: PreparedRun) -> str:
    """How many steps, and what one of them reads."""
    length, config = prepared.length, prepared.run.config
    return (
        f"{count_of(length.num_steps, 'step')} "
        f"({length.num_steps / length.steps_per_epoch:.1f} epochs) of "
        f"{count_of(length.rows_per_step, 'row')} of up to {config.data.max_seq_length} tokens"
    )


def describe_resume(config: RunConfig) -> str:
    """What a run that is to be resumed goes on from."""
    wanted, output_dir = config.checkpoints.resume_from_checkpoint, Path(config.train.output_dir)
    skipped: list[str] = []
    folder = find_checkpoint(wanted or "auto", output_dir, skip=skipped.append)
    if folder is None:
        return f"there is no checkpoint in {output_dir}, so training starts at its first step"
    return "; ".join([f"from {folder}", *(f"skipping a newer one: {one}" for one in skipped)])


def find_high_rate(config: RunConfig) -> Iterator[str]:
    """Say of a learning rate that it is far above what its objective and method are trained at."""
    objective, rate = config.preferences.objective, config.optimizer.learning_rate
    way = "LoRA" if config.lora.use_lora else "full fine-tuning"
    kind = "sft" if objective == "sft" else "preferences"
    usual, most = USUAL_RATES[kind, way]
    if rate > most:
        yield (
            f"learning_rate is {rate:g}; usual for {objective} by {way} is {usual}, and far above "
            "that a model forgets what it knows"
        )


def check_schedule(prepared: PreparedRun, console: Console) -> None:
    """Say what of a schedule makes no sense on this data.

    Raises:
        ConfigError: the warm-up is as long as the run.
    """
    config, num_steps = prepared.run.config, prepared.length.num_steps
    check_warmup(config, num_steps)
    has_evaluation = prepared.evaluation is not None
    idle = find_idle_settings(config, num_steps, has_evaluation=has_evaluation)
    for warning in (*find_high_rate(config), *idle):
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
