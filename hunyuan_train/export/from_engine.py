"""Write the trained model as a Hugging Face folder, in the released layout, from a running engine.

Rank 0 creates the files, then every rank writes the ranges it keeps into their places. Nothing is
gathered, no rank waits for another's data, and a rank needs no memory for it.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from hunyuan_train.checkpoint.errors import NoRoomError
from hunyuan_train.checkpoint.publish import (
    begin_folder,
    hash_file,
    publish_summed,
    unfinished_folder,
)
from hunyuan_train.export.check import MAX_CHECKED_PARAMETERS, Trained, make_prompts
from hunyuan_train.export.huggingface_folder import (
    Release,
    create_release,
    read_locations,
    write_piece,
    write_weights,
)
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters, released_tensors
from hunyuan_train.families.tensors import CARRIED, pieces_of_range
from hunyuan_train.model.lora import is_adapter
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.safetensors_header import TensorLocation
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.zero import is_primary, read_state, trained_shards, weight_shards
from hunyuan_train.progress import show_progress

logger = logging.getLogger(__name__)

FolderCheck = Callable[[Path], None]


def export_model(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    release: Release,
    source: WeightSource,
    *,
    check: FolderCheck | None = None,
) -> str | None:
    """Write `folder`; called by every rank, and published by rank 0 when all have written.

    Args:
        engine: between two steps.
        folder: the final folder; it appears, or is replaced, only once it is whole.
        release: what the folder says beside the weights.
        source: of the weights that were not trained.
        check: called on rank 0 with the finished folder before it gets its name.

    Returns:
        None, or what the disk did not take, the same on every rank: nothing is published then.
    """
    unfinished = unfinished_folder(folder)

    def begin() -> None:
        begin_folder(folder)
        create_release(unfinished, release)

    def write() -> None:
        write_owned_ranges(engine, release.shape, source, read_locations(unfinished))

    fault = fault_of(begin, on_all=False) or fault_of(write) or seal_folder(folder, check)
    if fault is None:
        logger.info("exported %s", folder)
    return fault


def fault_of(work: Callable[[], None], *, on_all: bool = True) -> str | None:
    """Do a part of an export that writes, and needs no other rank; called by every rank.

    Args:
        work: what is done.
        on_all: by every rank; False: by rank 0 alone.

    Returns:
        what a disk did not take of any rank's part, the same on every rank.
    """
    fault = None
    try:
        if on_all or dist.get_rank() == 0:
            work()
    except NoRoomError as error:
        fault = str(error)
    except OSError as error:
        fault = f"{error.filename or 'the export'} cannot be written: {error.strerror or error}"
    ranks: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, fault)
    return next(filter(None, ranks), None)


def write_owned_ranges(
    engine: deepspeed.DeepSpeedEngine,
    shape: ModelShape,
    source: WeightSource,
    locations: dict[str, TensorLocation],
) -> None:
    """Write what this rank keeps: float32 masters of what it trains, the source's bits of the rest.

    The masters matter where files are wider than the weights computed with (the routers').
    """
    trained = list(trained_shards(engine.module))
    others = [
        shard
        for shard in weight_shards(engine.module)
        if not shard.parameter.requires_grad and not is_adapter(shard.name) and is_primary(shard)
    ]
    tensors = released_tensors(shape).values()
    carried = [one.name for one in tensors if one.kind in CARRIED]
    mine = {name: locations[name] for name in carried[dist.get_rank() :: dist.get_world_size()]}
    num_bytes = 4 * sum(shard.stop - shard.start for shard in (*trained, *others))
    num_bytes += sum(one.num_bytes for one in mine.values())
    with show_progress("exporting", num_bytes) as advance:
        for shard in trained:
            values = read_state(engine, shard, MASTER)
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
                part = values[piece.offset : piece.offset + piece.stop - piece.start]
                write_piece(locations, piece, part)
                advance(4 * len(part))
        for shard in others:
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
                write_piece(locations, piece, source.read(piece.tensor, piece.start, piece.stop))
                advance(4 * (piece.stop - piece.start))
        write_weights(source, mine, advance)


def seal_folder(folder: Path, check: FolderCheck | None) -> str | None:
    """Check, sum up and publish a written folder; called by every rank, each sums some files.

    Returns:
        None, or what the disk did not take, the same on every rank.
    """
    files = sorted(unfinished_folder(folder).iterdir())
    mine: dict[str, str] = {}

    def sum_up() -> None:
        for file in files[dist.get_rank() :: dist.get_world_size()]:
            mine[file.name] = hash_file(file)

    if fault := fault_of(sum_up):
        return fault
    ranks: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)

    def finish() -> None:
        if check:
            check(unfinished_folder(folder))
        publish_summed(folder, {name: part[name] for part in ranks for name in part})

    return fault_of(finish, on_all=False)


@torch.no_grad()
def read_prompts(
    engine: deepspeed.DeepSpeedEngine, shape: ModelShape, *, written_dtype: torch.dtype
) -> Trained | None:
    """What the engine makes of the prompts that the exported folder will be checked with.

    Called by every rank alike; None for a model too large to be checked so.
    """
    if count_parameters(shape).total > MAX_CHECKED_PARAMETERS:
        return None
    batch = make_prompts(shape)
    engine.eval()
    losses = token_losses(engine, batch).cpu()
    engine.train()
    is_exact = written_dtype == next(engine.module.parameters()).dtype == torch.float32
    return Trained(shape, batch, losses, is_exact, engine.device.type == "cpu")
