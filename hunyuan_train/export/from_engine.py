"""Write the trained model as a Hugging Face folder, in the released layout, from a running engine.

Rank 0 creates the files, then every rank writes the ranges it keeps into their places. Nothing is
gathered, no rank waits for another's data, and a rank needs no memory for it.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.checkpoint.errors import DiskError, NoRoomError
from hunyuan_train.checkpoint.publish import (
    begin_folder,
    hash_files,
    num_threads,
    publish_summed,
    unfinished_folder,
)
from hunyuan_train.checkpoint.read_back import Part, WrittenParts, join_parts
from hunyuan_train.export.check import MAX_CHECKED_PARAMETERS, Trained, make_prompts
from hunyuan_train.export.huggingface_folder import (
    PIECE_ELEMENTS,
    Release,
    create_release,
    read_locations,
    write_piece,
    write_weights,
)
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters, released_tensors
from hunyuan_train.families.tensors import CARRIED, Piece, pieces_of_range
from hunyuan_train.model.lora import is_adapter
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.safetensors_header import TensorLocation
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.zero import (
    Shard,
    is_primary,
    read_state,
    trained_shards,
    weight_shards,
)
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
    unfinished, written = unfinished_folder(folder), WrittenParts()

    def begin() -> None:
        begin_folder(folder)
        create_release(unfinished, release)

    def write() -> None:
        write_owned_ranges(engine, release.shape, source, read_locations(unfinished), written)

    fault = fault_of(begin, on_all=False) or fault_of(write) or seal_folder(folder, check, written)
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
    except (NoRoomError, DiskError) as error:
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
    written: WrittenParts,
) -> None:
    """Write what this rank keeps: float32 masters of what it trains, the source's bits of the rest.

    The masters matter where files are wider than the weights computed with (the routers').
    """

    def write(piece: Piece, values: Tensor | None) -> int:
        if values is None:
            values = source.read(piece.tensor, piece.start, piece.stop)
        write_piece(locations, piece, values, written)
        return 4 * (piece.stop - piece.start)

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
    with (
        show_progress("exporting", num_bytes) as advance,
        ThreadPoolExecutor(num_threads()) as pool,
    ):
        for shard in trained:
            values, pieces = read_state(engine, shard, MASTER), list(cut_shard(shard))
            parts = (values[one.offset :][: one.stop - one.start] for one in pieces)
            for num_written in pool.map(write, pieces, parts):
                advance(num_written)
        for shard in others:
            for num_written in pool.map(write, cut_shard(shard), repeat(None)):
                advance(num_written)
        write_weights(source, mine, advance, written)


def cut_shard(shard: Shard) -> Iterator[Piece]:
    """The small pieces of released tensors that a shard consists of."""
    for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
        for start in range(piece.start, piece.stop, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, piece.stop)
            yield Piece(piece.tensor, start, stop, piece.offset + start - piece.start)


def seal_folder(
    folder: Path, check: FolderCheck | None, written: WrittenParts | None = None
) -> str | None:
    """Check, sum up and publish a written folder; called by every rank, each sums some files.

    Args:
        folder: the final one.
        check: see `export_model`.
        written: what this rank has written of it, to be compared with what the disk returns.

    Returns:
        None, or what the disk did not take, the same on every rank.
    """
    ranks_parts: list[dict[str, list[Part]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(ranks_parts, dict(written.by_name) if written else {})
    parts = join_parts(ranks_parts)
    files = sorted(unfinished_folder(folder).iterdir())
    mine: dict[str, str] = {}

    def sum_up() -> None:
        own = files[dist.get_rank() :: dist.get_world_size()]
        mine.update(hash_files(own, lambda _: None, parts))

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
