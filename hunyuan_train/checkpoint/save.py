"""Write a checkpoint: all ranks, each its own file, published by rank 0 when every one is on disk.

A disk that is full or cannot be written to is no reason to lose a run: what went wrong comes back
as a sentence, the same on every rank, and whatever was there before stays.
"""

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
import xxhash
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError, DiskError
from hunyuan_train.checkpoint.folder import (
    FORMAT_VERSION,
    SUM,
    TENSOR_SUMS,
    rank_file,
    write_manifest,
)
from hunyuan_train.checkpoint.publish import (
    begin_folder,
    hash_file,
    publish,
    unfinished_folder,
)
from hunyuan_train.checkpoint.read_back import WrittenParts, read_back
from hunyuan_train.checkpoint.retention import delete_leftovers
from hunyuan_train.checkpoint.state import RankContent
from hunyuan_train.model.safetensors_files import bytes_of
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.past_cache import PastCache
from hunyuan_train.planner.component import gigabytes
from hunyuan_train.progress import tell_progress
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.whole_file import make_folders

logger = logging.getLogger(__name__)

SUMMED_BYTES = 2**20  # summed twice and handed over before they have left a core's cache
ROOM_FOR_MANIFEST = 2**24  # bytes; also for what the file system takes for itself

Part = tuple[str, int, Tensor]  # of a state: its name, the first element, and elements from there
Ordered = Callable[[RankContent], Iterable[Part]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One checkpoint to be written."""

    folder: Path  # the final one
    state: TrainerState
    fingerprints: dict[str, Any]  # what the run is made of
    is_model_only: bool = False
    notes: dict[str, str] = field(default_factory=dict)  # rank 0's: the tracker's run


def write_checkpoint(
    job: Job, content: RankContent, order: Ordered, *, group: dist.ProcessGroup | None
) -> str | None:
    """Write and publish; called by every rank of the group alike.

    Args:
        job: the same on every rank.
        content: this rank's.
        order: gives the states, or copies of them, part by part, in the order in which to write
            them.
        group: over which the ranks agree; None is all of them, on the training's own group.

    Returns:
        None, or what went wrong: nothing is published then.
    """
    sizes = _gather(content.num_bytes, group)
    fault = _tell(_begin(job.folder, sum(sizes)) if dist.get_rank() == 0 else None, group)
    if fault:
        return fault
    ranks = _gather(_write_rank_file(job.folder, content, order), group)
    faults = [f"rank {rank}: {one}" for rank, one in enumerate(ranks) if isinstance(one, str)]
    outcome = None
    if dist.get_rank() == 0:
        outcome = faults[0] if faults else _publish(job, content, ranks)
        if outcome:
            shutil.rmtree(unfinished_folder(job.folder), ignore_errors=True)
    return _tell(outcome, group)


def _begin(folder: Path, num_bytes: int) -> str | None:
    """Make the folder, if its disk has room; or say why not."""
    try:
        make_folders(folder.parent)
        delete_leftovers(folder.parent)
        free = shutil.disk_usage(folder.parent).free
        if num_bytes + ROOM_FOR_MANIFEST > free:
            return (
                f"{folder.parent} has {gigabytes(free)} free, and a checkpoint takes "
                f"{gigabytes(num_bytes)}"
            )
        begin_folder(folder)
    except OSError as error:
        return _describe(error, folder.parent)
    except CheckpointError as error:
        return str(error)
    return None


def _write_rank_file(folder: Path, content: RankContent, order: Ordered) -> dict[str, Any] | str:
    """Write this rank's file and describe it for the manifest; or say why that failed."""
    path = unfinished_folder(folder) / rank_file(dist.get_rank())
    try:
        content.create(path)
        copies = ((name, 0, values) for name, values in content.copies.items())
        return write_parts(path, chain(order(content), copies)) | {"ranges": content.ranges}
    except FileNotFoundError:
        return (
            f"{path.parent}, which rank 0 has made, is not there for this rank: output_dir must "
            "lie on a disk that all machines share"
        )
    except DiskError as error:
        return str(error)
    except OSError as error:
        return _describe(error, path)


def write_parts(path: Path, parts: Iterable[Part]) -> dict[str, Any]:
    """Fill a file that has room for its tensors, and say what the manifest says of it.

    Every part is summed while it is at hand, and what the disk returns is compared with that.

    Raises:
        DiskError: it differs.
    """
    locations, written = read_header(path), WrittenParts()
    sums = {name: xxhash.xxh3_128() for name in locations}
    with PastCache(path) as file:
        for name, start, values in parts:
            position, content = locations[name].byte_of(start), bytes_of(values.contiguous())
            for first in range(0, len(content), SUMMED_BYTES):
                part = content[first : first + SUMMED_BYTES]
                written.note(path, position + first, part)
                sums[name].update(part)
                file.write(position + first, part)
                tell_progress()
    digest = xxhash.xxh3_128()
    read_back(path, digest, written.by_name[path.name])
    return {
        "size": path.stat().st_size,
        SUM: digest.hexdigest(),
        TENSOR_SUMS: {name: one.hexdigest() for name, one in sums.items()},
    }


def _publish(job: Job, content: RankContent, ranks: list[Any]) -> str | None:
    """Write the manifest and give the folder its name; or say why that failed."""
    try:
        path = write_manifest(
            unfinished_folder(job.folder),
            {
                "format_version": FORMAT_VERSION,
                "state": asdict(job.state),
                "kinds": content.kinds,
                "is_model_only": job.is_model_only,
                "optimizer_step_count": content.step_count,
                "fingerprints": job.fingerprints,
                "notes": job.notes,
                "files": {rank_file(rank): entry for rank, entry in enumerate(ranks)},
            },
        )
        hash_file(path)  # waits until it is on disk
        publish(job.folder)
    except OSError as error:
        return _describe(error, job.folder)
    return None


def _describe(error: OSError, path: Path) -> str:
    return f"{error.filename or path} cannot be written: {error.strerror or error}"


def _gather(value: object, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def _tell(value: str | None, group: dist.ProcessGroup | None) -> str | None:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]
