"""A checkpoint on disk: one file of tensors per rank and a manifest that vouches for all of them.

    runs/tiny/checkpoints/step-000120/
        manifest.json              where the run stood, what each file holds, sizes and checksums
        rank-00000.safetensors     master weights and optimizer states of rank 0's ranges

It is written as `step-000120.incomplete` and renamed when every file is on disk, so a folder with
the final name is whole. Tensors are ranges of released tensors in disguise (see
`families/tables.py`), which any other split of the model can read. Nothing in it is pickled.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step-(\d{6,})")
DIGEST = "sha256"  # of the rest of the manifest, or of a file


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return output_dir / "checkpoints" / f"step-{step:06d}"


def rank_file(rank: int) -> str:
    """File name of one rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Published checkpoints of a run, oldest first."""
    found = (output_dir / "checkpoints").glob("step-*")
    named = [path for path in found if FOLDER_NAME.fullmatch(path.name)]
    return sorted((path for path in named if (path / MANIFEST).exists()), key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def find_candidates(resume_from_checkpoint: str, output_dir: Path) -> list[Path]:
    """The checkpoints that `--resume_from_checkpoint` admits, the best one first.

    Raises:
        CheckpointError: the given folder is no published checkpoint.
    """
    if resume_from_checkpoint == "auto":
        return list_checkpoints(output_dir)[::-1]
    folder = Path(resume_from_checkpoint)
    if not (folder / MANIFEST).exists():
        raise CheckpointError(
            f"resume_from_checkpoint is {folder}, which holds no {MANIFEST} and so is no complete "
            "checkpoint; give a folder like runs/NAME/checkpoints/step-000120, or auto"
        )
    return [folder]


def find_checkpoint(resume_from_checkpoint: str, output_dir: Path) -> Path | None:
    """The first candidate whose files are there in their sizes; None where auto finds none.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used.
    """
    faults = []
    for folder in find_candidates(resume_from_checkpoint, output_dir):
        try:
            read_manifest(folder)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return folder
    refuse_all(faults, output_dir)
    return None


def refuse_all(faults: list[str], output_dir: Path) -> None:
    """Stop rather than start afresh where checkpoints exist but none is good.

    Raises:
        CheckpointError: naming every fault, if there are any.
    """
    if faults:
        raise CheckpointError(
            f"no checkpoint can be used: {'; '.join(faults)}. Bring a good copy back, or start "
            f"anew in another output_dir than {output_dir}"
        )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> Path:
    """Write the manifest with a checksum of its own."""
    path = folder / MANIFEST
    sealed = {**manifest, DIGEST: _digest_of(manifest)}
    path.write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check that the files it names are there, in the sizes it names.

    Raises:
        CheckpointError: not readable, another format, or a file missing or cut short.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest.get("format_version")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, and this version of hunyuan_train reads "
            f"format {FORMAT_VERSION}; go on from it with the version that wrote it, or export it "
            "with that version and start from the exported model"
        )
    if manifest.pop(DIGEST, None) != _digest_of(manifest):
        raise CheckpointError(f"{path} is not what was written: its checksum differs")
    for name, entry in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).exists() else None
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{folder / name} {found}, the manifest says {entry['size']}")
    return manifest


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
