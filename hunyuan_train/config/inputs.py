"""Rules about the run's own folder on disk.

The model's files, the tokenizer and the data are checked by what reads them.
"""

from pathlib import Path

from hunyuan_train.config.schema import CheckpointConfig, TrainConfig
from hunyuan_train.errors import ConfigError


def check_output_folder(train: TrainConfig, checkpoints: CheckpointConfig) -> None:
    """Refuse to write over the checkpoints of another run.

    Raises:
        ConfigError: with the remedies.
    """
    folder = Path(train.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir is {folder}, which is a file; give a folder")
    if train.overwrite_output_dir or checkpoints.resume_from_checkpoint is not None:
        return
    reached = sorted(folder.glob("checkpoints/step-*"))
    if (folder / "config.yaml").exists() and reached:
        raise ConfigError(
            f"output_dir is {folder}, which holds a run that reached {reached[-1].name}; go on "
            "with it by --resume_from_checkpoint auto, give another --output_dir, or start afresh "
            f"with --overwrite_output_dir, which moves that run to {folder}.previous"
        )
