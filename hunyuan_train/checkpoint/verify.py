"""Whether a checkpoint is what was written, byte for byte.

Sizes and the manifest are checked whenever one is read (`folder.py`); here every file is read and
summed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import DIGEST, MANIFEST, SUM, list_checkpoints, read_manifest
from hunyuan_train.progress import show_progress

BLOCK_BYTES = 2**22
ALGORITHMS: dict[str, Callable[[], Any]] = {DIGEST: hashlib.sha256, SUM: xxhash.xxh3_128}


def sum_file(path: Path, advance: Callable[[int], None], algorithm: str = DIGEST) -> str:
    """The checksum of a file, in blocks so that hours of reading show progress."""
    digest = ALGORITHMS[algorithm]()
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
            advance(size)
    return str(digest.hexdigest())


def recorded_sum(entry: Mapping[str, Any]) -> tuple[str, str]:
    """By which algorithm a manifest's file was summed, and its checksum."""
    algorithm = SUM if SUM in entry else DIGEST
    return algorithm, entry[algorithm]


def find_damage(
    folder: Path,
    manifest: dict[str, Any],
    names: Sequence[str],
    advance: Callable[[int], None],
) -> list[str]:
    """What is wrong with some files of a checkpoint: a sentence for each, naming it."""
    faults = []
    for name in names:
        algorithm, expected = recorded_sum(manifest["files"][name])
        try:
            found = sum_file(folder / name, advance, algorithm)
        except OSError as error:
            faults.append(f"{folder / name} cannot be read: {error.strerror}")
            continue
        if found != expected:
            faults.append(f"{folder / name} is not what was written: its checksum differs")
    return faults


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a whole checkpoint and compare every byte with its checksums.

    Returns:
        its manifest.

    Raises:
        CheckpointError: naming every damaged file.
    """
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} holds no {MANIFEST} and so is no complete checkpoint")
    manifest = read_manifest(folder)
    size = sum(entry["size"] for entry in manifest["files"].values())
    with show_progress("verifying", size) as advance:
        faults = find_damage(folder, manifest, list(manifest["files"]), advance)
    if faults:
        raise CheckpointError("; ".join(faults))
    return manifest


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoint that a folder is, or all those of the run that it is.

    Raises:
        CheckpointError: it is neither.
    """
    found = list_checkpoints(folder)
    if not found and not (folder / MANIFEST).exists():
        raise CheckpointError(
            f"{folder} is no complete checkpoint and no run that has one; give a folder like "
            "runs/NAME/checkpoints/step-000120, or runs/NAME"
        )
    return found or [folder]
