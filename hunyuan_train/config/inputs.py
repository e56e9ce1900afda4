"""Rules about what lies on disk: the model's weights and the run's own folder.

The tokenizer and the data are checked by reading them, which is `data/`'s business.
"""

import json
from pathlib import Path

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import RunConfig, TrainConfig


def check_inputs(config: RunConfig, *, is_preset: bool) -> None:
    """Run every rule about files.

    Raises:
        ConfigError: the first rule that is broken.
    """
    if not is_preset:
        check_weights(Path(config.model.model_name_or_path))
    check_output_folder(config.train)


def check_weights(folder: Path) -> None:
    """Refuse a model folder without weights: it would mean a random start."""
    if not any(folder.glob("*.safetensors")):
        found = "only weights in .bin form" if any(folder.glob("*.bin")) else "no weights"
        raise ConfigError(
            f"model_name_or_path is {folder}, which holds {found} and not a single .safetensors "
            "file; download the model with its weights"
        )
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(file) for file in weight_map.values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{index} is not an index of weights ({error}); download it again"
        ) from error
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise ConfigError(
            f"model_name_or_path is {folder}, where {len(missing)} of {len(files)} weight files "
            f"are missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); "
            "download them"
        )


def check_output_folder(train: TrainConfig) -> None:
    """Refuse to write over the checkpoints of another run."""
    folder = Path(train.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir is {folder}, which is a file; give a folder")
    if train.overwrite_output_dir or train.resume_from_checkpoint is not None:
        return
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    if (folder / "config.yaml").exists() and checkpoints:
        raise ConfigError(
            f"output_dir is {folder}, which holds a run that reached {checkpoints[-1].name}; go on "
            "with it by --resume_from_checkpoint auto, give another --output_dir, or start afresh "
            f"with --overwrite_output_dir, which moves that run to {folder}.previous"
        )
