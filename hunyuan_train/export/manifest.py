"""What an exported, merged or adapter's folder says of where it comes from.

`quantize` asks how much of a fine-tune survives, and so needs the model that was tuned, wherever
the folder has been copied since.
"""

import json
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.released_files import EXPORT_MANIFEST
from hunyuan_train.serve.trained_pair import BASE, FORM, IDENTITY


def write_manifest(folder: Path, base: Path) -> None:
    """Name the folder of the model that was trained."""
    content = json.dumps({BASE: str(base.resolve())}, indent=2, ensure_ascii=False)
    (folder / EXPORT_MANIFEST).write_text(content + "\n", encoding="utf-8")


def write_adapter_manifest(folder: Path, base: str, *, identity: str, expert_weights: str) -> None:
    """Name the base that an adapter was trained on, for it is exact on no other.

    Args:
        folder: the adapter's.
        base: as it was given: a folder or a preset.
        identity: of its weights, by a sample of each file.
        expert_weights: in which form its frozen experts were.
    """
    where = str(Path(base).resolve()) if Path(base).is_dir() else base
    content = {BASE: where, IDENTITY: identity, FORM: expert_weights}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / EXPORT_MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_base(folder: Path) -> str | None:
    """The folder of the model that was trained, which may be gone; None where none is named.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    path = folder / EXPORT_MANIFEST
    if not path.exists():
        return None
    try:
        base = read_json_object(path)[BASE]
        if not isinstance(base, str):
            raise TypeError(f"{BASE} is no text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not name the model that was trained ({error}); export again, or remove "
            "the file and give --base DIR"
        ) from error
    return base
