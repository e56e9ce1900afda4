"""The rule about the run's own folder on disk."""

import os
from os.path import exists
from pathlib import Path

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.errors import ConfigError


def check_output_folder(run: ResolvedRun) -> None:
    """Refuse to write over the checkpoints of another run."""
    train = run.config.train
    folder = Path(train.output_dir)
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if exists(path)
    )
    if not existing.is_dir():
        where = "is a file" if existing == folder.absolute() else f"lies below the file {existing}"
        raise ConfigError(f"output_dir is {folder}, which {where}; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"output_dir is {folder}, and nothing may be written in {existing}; give a folder of "
            "yours, or have its owner allow it"
        )
    is_resumed = run.config.checkpoints.resume_from_checkpoint is not None
    if train.overwrite_output_dir or is_resumed:
        return
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    if (folder / CONFIG).exists() and checkpoints:
        raise ConfigError(
            f"output_dir is {folder}, which holds a run that reached {checkpoints[-1].name}; go on "
            "with it by --resume_from_checkpoint auto, give another --output_dir, or start afresh "
            f"with --overwrite_output_dir, which moves that run to {folder}.previous"
        )
