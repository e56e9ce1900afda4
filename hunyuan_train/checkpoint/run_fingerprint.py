"""What a run is made of, and what of that has changed since a checkpoint."""

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.config.schema import OptimizerConfig, RunConfig
from hunyuan_train.config.settings import FIELDS, with_settings
from hunyuan_train.data.compiled.fingerprint import Identity, list_differences
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape, stretch_rope
from hunyuan_train.model.base_folder import identify_weights
from hunyuan_train.shipped import PACKAGE
from hunyuan_train.source_hash import hash_source

# All code decides the numbers of a run, but for this: what starts ranks, watches the clock, shows
# or exports. New files count until they are named here. What the launcher decides for the ranks
# reaches them as settings, which are compared by themselves.
UNDECIDING = (
    *("export", "launcher", "planner", "rehearsal", "report", "selftest", "serve"),
    "shipped_files",
    *("__main__.py", "cli.py", "deferred.py", "ending.py", "rank_process.py"),
    *("shipped.py", "verify_resume.py"),
    *("html_page.py", "json_lines.py", "json_screen.py", "log.py", "progress.py"),
    *("config/commands.py", "config/describe.py", "config/json_schema.py"),
    *("data/commands.py", "data/exact_output.py", "data/inspection"),
    *("evaluation/samples.py", "evaluation/show_answer.py"),
    *("parallel/collective_timers.py", "parallel/numa.py"),
    "objectives/preference_warnings.py",
    *("trainer/clock.py", "trainer/describe.py", "trainer/heat_map.py"),
    "trainer/memory_estimate.py",
    *("trainer/out_of_memory.py", "trainer/profiler.py", "trainer/starts.py"),
    "trainer/throughput.py",
)
_NUM_SHOWN = 5  # differences of the data
DECIDING_LIBRARIES = ("torch", "deepspeed", "transformers", "peft")
REMEDIES = {
    "model": "the tensors of one do not fit the other: give the model it was trained from",
    "code": "go back to it, or go on with --ignore_code_change: steps may then differ in the last "
    "bits from those of an uninterrupted run",
    "settings": "give the old values, or go on with the new ones by --ignore_settings_change",
}


def describe_run(
    config: RunConfig, shape: ModelShape, *, rows_per_step: int | None = None
) -> dict[str, Any]:
    """What the steps of a run depend on besides its data: names and values, by kind.

    Args:
        config: resolved.
        shape: of the model that is trained.
        rows_per_step: of all processes, where known; how they are dealt out changes nothing.
    """
    settings = deciding_settings(config)
    if rows_per_step:
        settings["rows per step"] = rows_per_step
    return {
        "model": identify_model(config, shape),
        "code": describe_code(),
        "settings": settings,
    }


def identify_model(config: RunConfig, shape: ModelShape) -> dict[str, Any]:
    """What tells the model of a run from others: its shape, its weights, its tokens."""
    return {
        **asdict(replace(shape, leaves_out_mtp=False)),
        "weights": identify_weights(config.model.model_name_or_path),
        "new tokens": identify_file(config.model.add_tokens),
    }


def identify_start(config: RunConfig, shape: ModelShape) -> dict[str, Any]:
    """What tells the model that training starts from apart: with the adapters it starts from."""
    adapter = config.lora.adapter_name_or_path
    is_drawn = config.model.model_name_or_path in PRESETS  # from the seed
    return identify_model(config, shape) | {
        "seed": config.train.seed if is_drawn else None,
        "adapters": adapter and identify_file(str(Path(adapter, "adapter_model.safetensors"))),
    }


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that steps depend on, without those of the data, which is compared itself."""
    kinds = {True, "by schedule"} if follows_length(config.optimizer) else {True}
    config = with_settings(config, lora_alpha=config.lora.alpha)
    return {
        name: value
        for section, settings in asdict(config).items()
        for name, value in settings.items()
        if section != "data" and FIELDS[name].metadata["changes_steps"] in kinds
    }


def follows_length(optimizer: OptimizerConfig) -> bool:
    """Whether the learning rate of a step depends on how many steps there are."""
    is_constant = optimizer.lr_scheduler_type in ("constant", "constant_with_warmup")
    steps, ratio = optimizer.warmup_steps, optimizer.warmup_ratio
    return not is_constant or 0 < steps < 1 or bool(ratio and not steps)


def identify_file(path: str | None) -> str | None:
    """Tell a small file by its content."""
    return path and f"file {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"


@cache
def describe_code() -> dict[str, str]:
    """Versions of the libraries, and a hash of our own source, that decide the numbers."""
    versions = {name: version(name) for name in DECIDING_LIBRARIES}
    digest = hash_source(PACKAGE, left_out=UNDECIDING)
    return {**versions, "hunyuan_train": f"source {digest[:12]}"}


def check_changes(
    saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path, *, config: RunConfig
) -> None:
    """Refuse to go on from a checkpoint of a run that was made of something else.

    Args:
        saved: the manifest's fingerprints.
        current: `describe_run` of this run.

    Raises:
        CheckpointError: naming what differs, both values, and the remedy.
    """
    ignored = {
        "code": config.checkpoints.ignore_code_change,
        "settings": config.checkpoints.ignore_settings_change,
    }
    for kind, values in current.items():
        if ignored.get(kind, False):
            continue
        before = saved.get(kind, {})
        # Checkpoints from before a field was known have its default.
        if kind == "model":
            known = {one.name: one.default for one in fields(ModelShape)}
            known = {name: one for name, one in known.items() if one is not MISSING}
            before = known | stretch_rope(before)
        elif kind == "settings":
            defaults = {name: FIELDS[name].default for name in values if name in FIELDS}
            before = defaults | {"expert_weights": "bf16"} | before  # "auto" is decided by now
        changed = [
            f"{name} ({before.get(name)}, now {value})"
            for name, value in values.items()
            if before.get(name) != value
        ]
        if changed:
            raise CheckpointError(
                f"{folder} was trained with other {kind}: {', '.join(changed)}; {REMEDIES[kind]}"
            )


def check_same_data(folder: Path, current: Identity, *, ignores_change: bool) -> bool:
    """Whether the data is what the checkpoint saw.

    Raises:
        CheckpointError: it is not, naming what differs, unless `ignores_change`.
    """
    differences = list_differences(read_manifest(folder)["fingerprints"]["data"], current)
    if differences and not ignores_change:
        num_more = len(differences) - _NUM_SHOWN
        shown = differences[:_NUM_SHOWN] + ([f"and {num_more:,} more"] if num_more > 0 else [])
        raise CheckpointError(
            f"{folder} was trained on other data: {'; '.join(shown)}. Restore what it was, or give "
            "--ignore_data_change: weights, optimizer and step are kept then, and the new data is "
            "read from its first row on"
        )
    return not differences
