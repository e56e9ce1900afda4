"""A checkpoint on disk: one file of tensors per rank and a manifest that vouches for all of them.

    runs/tiny/checkpoints/step-000120/
        manifest.json              step, data position, what each file holds, sizes and checksums
        rank-00000.safetensors     float32 weights and optimizer states of rank 0's ranges

It is written as `step-000120.incomplete` and renamed when every file is on disk, so a folder with
the final name is whole. Tensors are float32 ranges of released tensors in disguise (see
`model/layout.py`), which any other split of the model can read.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import hash_file

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step-(\d{6,})")


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return output_dir / "checkpoints" / f"step-{step:06d}"


def rank_file(rank: int) -> str:
    """File name of one rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (output_dir / "checkpoints").glob("step-*")
    named = [path for path in found if FOLDER_NAME.fullmatch(path.name)]
    return sorted((path for path in named if (path / MANIFEST).exists()), key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def find_checkpoint(resume_from_checkpoint: str, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; None where auto finds none.

    Raises:
        CheckpointError: the given folder is not a complete checkpoint.
    """
    if resume_from_checkpoint == "auto":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    folder = Path(resume_from_checkpoint)
    if not (folder / MANIFEST).exists():
        raise CheckpointError(
            f"resume_from_checkpoint is {folder}, which holds no {MANIFEST} and so is no complete "
            "checkpoint; give a folder like runs/NAME/checkpoints/step-000120, or auto"
        )
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check that the files it names are there, in the sizes it names.

    Raises:
        CheckpointError: not readable, another format, or a file missing or cut short.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest.get("format_version")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}; this version reads format {FORMAT_VERSION}"
        )
    for name, entry in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).exists() else None
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(
                f"{folder / name} {found}, the manifest says {entry['size']}; resume from an older "
                "checkpoint"
            )
    return manifest


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file that was just written, after it is safely on disk."""
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def delete_old_checkpoints(output_dir: Path, limit: int) -> None:
    """Keep the newest `limit` checkpoints; 0 keeps all."""
    if limit:
        for folder in list_checkpoints(output_dir)[:-limit]:
            logger.info("deleting %s (save_total_limit is %d)", folder, limit)
            shutil.rmtree(folder)


def check_fingerprints(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of a run that was made of something else.

    Raises:
        CheckpointError: naming what differs.
    """
    changed = sorted(name for name in current if saved.get(name) != current[name])
    if changed:
        name = changed[0]
        raise CheckpointError(
            f"{folder} was trained with another {name} ({saved.get(name)}, now {current[name]}); "
            "restore it, or start a new run in another output_dir"
        )
