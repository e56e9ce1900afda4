"""A stopped run on disk: its newest checkpoint and settings, found and checked without torch."""

from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    MANIFEST,
    checkpoint_folder,
    list_checkpoints,
    read_manifest,
)
from hunyuan_train.config.load import load_config
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.model.base_folder import locate_base, resolve_base


def find_newest(folder: Path) -> Path:
    """The checkpoint that a folder is, or the newest one of the run that it is.

    Raises:
        CheckpointError: it is neither.
    """
    if (folder / MANIFEST).exists():
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(
            f"{folder} is no complete checkpoint and no run that has one; give a folder like "
            "runs/NAME/checkpoints/step-000120, or runs/NAME"
        )
    return checkpoints[-1]


def find_best(run: Path) -> Path:
    """The checkpoint of the best evaluation, by metric_for_best_model.

    Raises:
        CheckpointError: there was no evaluation, or this checkpoint was not kept.
    """
    newest = find_newest(run)
    if newest == run:
        raise CheckpointError(
            f"{run} is one checkpoint, and the best is one of a run's; give the run's folder, "
            "runs/NAME, or leave --best out"
        )
    step = read_manifest(newest)["state"]["best_step"]
    if step is None:
        raise CheckpointError(
            f"{run} was not evaluated before {newest.name}, so no checkpoint is known as the best; "
            "give one of them by its folder, or leave --best out for the newest"
        )
    best = checkpoint_folder(run, step)
    if not (best / MANIFEST).exists():
        raise CheckpointError(
            f"the best evaluation of {run} was after step {step}, whose checkpoint was not kept; "
            "export another by its folder, and train with --save_best to keep it next time"
        )
    return best


def read_settings(checkpoint: Path, moved: dict[str, str]) -> RunConfig:
    """The settings of the run that a checkpoint lies in.

    Args:
        checkpoint: of the run.
        moved: settings that have changed since, such as where its model lies.

    Raises:
        CheckpointError: there is no run around the checkpoint.
    """
    path = checkpoint.resolve().parents[1] / CONFIG
    if not path.exists():
        raise CheckpointError(
            f"{checkpoint} lies in no run: {path} is missing, which says what was trained; copy "
            "the checkpoint together with its run, as RUN/config.yaml and RUN/checkpoints/STEP"
        )
    flags = [word for name, value in moved.items() for word in (f"--{name}", value)]
    return load_config(["--config", str(path), *flags])


def check_stopped_run(folder: Path, moved: dict[str, str]) -> None:
    """Check everything that can be seen without reading weights.

    Raises:
        CheckpointError: no complete checkpoint there, or no run around it.
        ConfigError: the model that the run started from is gone or damaged.
    """
    checkpoint = find_newest(folder)
    read_manifest(checkpoint)
    model = read_settings(checkpoint, moved).model
    name = model.model_name_or_path
    shape = resolve_base(name, carry_mtp=model.carry_mtp)
    if name not in PRESETS:
        locate_base(Path(name), shape)
