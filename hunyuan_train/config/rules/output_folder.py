"""The rule about the run's own folder on disk."""

from pathlib import Path

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.errors import ConfigError


def check_output_folder(run: ResolvedRun) -> None:
    """Refuse to write over the checkpoints of another run."""
    train = run.config.train
    folder = Path(train.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir is {folder}, which is a file; give a folder")
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
