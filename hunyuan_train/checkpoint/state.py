"""What a rank puts into a checkpoint and takes from one: its own ranges, nothing gathered."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import rank_file
from hunyuan_train.checkpoint.random_states import (
    GENERATORS,
    read_random_states,
    restore_random_states,
)
from hunyuan_train.checkpoint.resharding import open_tensors
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.router import RouterWatch
from hunyuan_train.model.safetensors_files import create_file
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.optimizer import engine_optimizer, prepare_optimizer_states
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import (
    optimizer_step_count,
    publish_weights,
    state_kinds,
    stored_state,
    trained_shards,
    write_state,
)
from hunyuan_train.progress import show_progress

ROUTER_LOAD = "router_load"  # counted since the last logged step


@dataclass(frozen=True, slots=True)
class RankContent:
    """What one rank writes. The states are the live ones, which only the optimizer changes."""

    kinds: list[str]
    states: dict[str, Tensor]  # "kind:parameter", flat views, and the scales of coded ones
    copies: dict[str, Tensor]  # small ones, already copied
    ranges: dict[str, list[int]]  # where each parameter's states belong
    step_count: int  # of the optimizer

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.states.values(), *self.copies.values()))

    def create(self, path: Path) -> None:
        """Write the file with room for everything and nothing in it yet."""
        tensors = self.states | self.copies
        create_file(path, {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()})


def collect_content(
    engine: deepspeed.DeepSpeedEngine, watch: RouterWatch | None, *, only_model: bool = False
) -> RankContent:
    """Name everything that this rank keeps; quick, nothing large is copied.

    Args:
        engine: between two steps.
        watch: of the routers, whose counts belong to the metrics.
        only_model: leave out the optimizer's states.
    """
    # States that lean makes before the first update say nothing, and other optimizers have none.
    has_states = optimizer_step_count(engine) > 0 and not only_model
    kinds = state_kinds(engine) if has_states else [MASTER]
    shards = list(trained_shards(engine.module))
    copies = read_random_states()
    if watch and watch.load_LE.numel():
        copies[ROUTER_LOAD] = watch.load_LE.double().cpu()  # exact up to 2^53
    return RankContent(
        kinds=kinds,
        states={
            name: tensor
            for shard in shards
            for kind in kinds
            for name, tensor in stored_state(engine, shard, kind).items()
        },
        copies=copies,
        ranges={
            shard.name: [shard.first_expert, shard.start, shard.stop, *shard.shape]
            for shard in shards
        },
        step_count=optimizer_step_count(engine),
    )


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    manifest: Mapping[str, Any],
    watch: RouterWatch | None = None,
) -> None:
    """Restore everything a step depends on; called by every rank.

    The number of ranks, the expert-parallel size and the ZeRO stage may differ from those that
    saved: weights and optimizer states are the same bit for bit, except that coded states are coded
    anew where the new ranges cut their blocks elsewhere.

    Args:
        engine: fresh, or between two steps.
        folder: of a checkpoint that is known to be good.
        manifest: its own.
        watch: of the routers.

    Raises:
        CheckpointError: it holds the model only, or other tensors than this one has.
    """
    if manifest["is_model_only"]:
        raise CheckpointError(
            f"{folder} was saved with save_only_model and so without optimizer states: it can be "
            "exported, but no run can go on from it"
        )
    prepare_optimizer_states(engine, manifest["optimizer_step_count"])
    load_states(engine, folder, manifest)
    restore_copies(folder, num_ranks=len(manifest["files"]), watch=watch)
    publish_weights(engine)
    refresh_routers(engine)


def load_states(
    engine: deepspeed.DeepSpeedEngine, folder: Path, manifest: Mapping[str, Any]
) -> None:
    """Read this rank's ranges of every kind of state; the bar shows those of rank 0.

    Kinds that only the saving optimizer had, the moments of AdamW for SGD, say, are left out.
    """
    kept = (MASTER, *engine_optimizer(engine).states)
    family = FAMILIES[engine.module.config.model_type]
    sources = {
        kind: source
        for kind, source in open_tensors(folder, manifest, family).items()
        if kind in kept
    }
    shards = list(trained_shards(engine.module))
    num_bytes = sum(4 * (shard.stop - shard.start) * len(sources) for shard in shards)
    with show_progress(f"loading {folder.name}", num_bytes) as advance:
        for shard in shards:
            for kind, source in sources.items():
                values = torch.empty(shard.stop - shard.start)
                for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
                    part = source.read(piece.tensor, piece.start, piece.stop)
                    values[piece.offset : piece.offset + len(part)] = part
                    advance(part.nbytes)
                write_state(engine, shard, kind, values.to(engine.device))


def restore_copies(folder: Path, *, num_ranks: int, watch: RouterWatch | None) -> None:
    """Take over random states and counts that `num_ranks` ranks saved, however many there are now.

    Ranks beyond those that saved take the random states of the first ones again.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with safe_open(folder / rank_file(rank % num_ranks), "pt") as file:
        saved = set(file.keys())
        restore_random_states({one: file.get_tensor(one) for one in GENERATORS if one in saved})
    if watch is None or ROUTER_LOAD not in saved:
        return
    total_LE = torch.zeros(watch.load_LE.shape, dtype=torch.float64)
    for index in range(rank, num_ranks, world_size):
        with safe_open(folder / rank_file(index), "pt") as file:
            total_LE += file.get_tensor(ROUTER_LOAD)
    watch.put_load(total_LE.to(watch.load_LE))
