"""From which checkpoint a run goes on: the newest that is good, found by all ranks together."""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import find_candidates, read_manifest, refuse_all
from hunyuan_train.checkpoint.verify import find_damage
from hunyuan_train.log import SHARED
from hunyuan_train.progress import show_progress

logger = logging.getLogger(__name__)

Checkpoint = tuple[Path, dict[str, Any]]  # the folder and its manifest


def choose_checkpoint(resume_from_checkpoint: str, output_dir: Path) -> Checkpoint | None:
    """Take the first candidate that is whole to the last byte; called by every rank.

    Each rank reads some of the files. A damaged candidate is named and passed over.

    Returns:
        None where "auto" finds no checkpoint at all.

    Raises:
        CheckpointError: there are candidates, and all are damaged.
    """
    candidates = [find_candidates(resume_from_checkpoint, output_dir)]
    dist.broadcast_object_list(candidates)  # a disk that is shared may show ranks other things
    all_faults: list[str] = []
    for folder in candidates[0]:
        manifest, faults = examine(folder)
        if not faults:
            return folder, manifest
        all_faults += faults
        logger.warning("skipping %s: %s", folder, "; ".join(faults), extra=SHARED)
    refuse_all(all_faults, output_dir, resume_from_checkpoint)
    return None


def examine(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read and check a checkpoint; called by every rank, with the same answer for all.

    Returns:
        manifest: empty where it cannot be read.
        faults: a sentence for each.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    manifest: dict[str, Any] = {}
    faults: list[str] = []
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        faults = [str(error)]
    else:
        mine = list(manifest["files"])[rank::world_size]
        size = sum(manifest["files"][name]["size"] for name in mine)
        with show_progress(f"verifying {folder.name}", size) as advance:
            faults = find_damage(folder, manifest, mine, advance)
    ranks: list[list[str]] = [[]] * world_size
    dist.all_gather_object(ranks, faults)
    return manifest, sorted({fault for part in ranks for fault in part})
