"""Where the model lies that a folder stands for: an exported model, or an adapter on its base.

Known without torch, so that what does not fit the model is refused before anything is loaded.
"""

from pathlib import Path

from hunyuan_train.config.run_files import EXPORT
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.json_file import read_json_object
from hunyuan_train.serve.errors import ServeError

ADAPTER = "adapter_config.json"
CONFIG = "config.json"


def find_export(folder: Path) -> Path:
    """The export of a run where the folder is a run's, else the folder itself."""
    if any((folder / name).exists() for name in (CONFIG, ADAPTER)):
        return folder
    export = folder / EXPORT
    return export if any((export / name).exists() for name in (CONFIG, ADAPTER)) else folder


def refuse_base(folder: Path, base: Path | None) -> None:
    """Refuse a base beside a whole model, which would not be looked at.

    Raises:
        ServeError: saying which of the two to leave out.
    """
    if base is not None and not is_adapter(folder) and (folder / CONFIG).exists():
        raise ServeError(
            f"base is {base}, and {folder} is a whole model, which needs none; leave --base out, "
            "or give the folder of an adapter"
        )


def find_model_folder(folder: Path, *, base: Path | None) -> Path:
    """Where config.json and the weights lie: in the folder itself, or in that of its base model.

    Args:
        folder: of an exported model or adapter.
        base: where the adapter's base model lies; by default where it lay in training.

    Raises:
        ServeError: the folder is neither, or the base is not there.
    """
    if is_adapter(folder):
        return _find_base(folder, base)
    if not (folder / CONFIG).exists():
        reason = "so it is no model and no adapter"
        if not folder.exists():
            reason = "because it does not exist"
        raise ServeError(
            f"{folder} holds neither config.json nor {ADAPTER}, {reason}; give a folder like "
            "runs/NAME/export"
        )
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter, which needs its base model."""
    return (folder / ADAPTER).exists()


def read_base_name(adapter: Path) -> str:
    """What an adapter calls its base model: a folder, a name on a hub or a preset.

    Raises:
        ServeError: its description is damaged, or names none.
    """
    try:
        name = read_json_object(adapter / ADAPTER)["base_model_name_or_path"]
        if not isinstance(name, str):
            raise ValueError(f"base_model_name_or_path is {name}")
    except KeyError as error:
        raise ServeError(f"{adapter / ADAPTER} has no field {error}; export it again") from error
    except (OSError, ValueError) as error:
        raise ServeError(
            f"{adapter / ADAPTER} cannot be used ({error}); export the adapter again"
        ) from error
    return name


def _find_base(adapter: Path, base: Path | None) -> Path:
    """The folder of an adapter's base model."""
    name = "" if base else read_base_name(adapter)
    if name in PRESETS:
        raise ServeError(
            f"{adapter} was trained on the random weights of the preset {name}, which lie in no "
            "folder; train adapters on an exported model, and give it with --base"
        )
    folder = base or Path(name)
    if not (folder / CONFIG).exists():
        raise ServeError(
            f"{adapter} belongs on the base model {folder}, where there is no config.json; say "
            "where it lies with --base DIR"
        )
    return folder
