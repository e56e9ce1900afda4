"""Save and restore a run between two steps: each rank its own ranges, nothing gathered."""

import json
import logging
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from hunyuan_train.checkpoint.folder import (
    FORMAT_VERSION,
    MANIFEST,
    check_fingerprints,
    describe_file,
    rank_file,
    read_manifest,
)
from hunyuan_train.checkpoint.fragments import open_tensors
from hunyuan_train.checkpoint.publish import begin_folder, publish, unfinished_folder
from hunyuan_train.data.loader import Position
from hunyuan_train.model.layout import pieces_of_range
from hunyuan_train.model.safetensors_files import create_file, write_range
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import (
    optimizer_step_count,
    prepare_optimizer_states,
    publish_weights,
    read_state,
    state_kinds,
    trained_shards,
    write_state,
)
from hunyuan_train.trainer.loop import TrainerState

logger = logging.getLogger(__name__)

RANDOM = tuple(f"random_state.{name}" for name in ("python", "cpu", "device"))
PYTHON_RANDOM, CPU_RANDOM, DEVICE_RANDOM = RANDOM


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    state: TrainerState,
    folder: Path,
    *,
    fingerprints: dict[str, Any],
) -> None:
    """Write a checkpoint; called by every rank, and published by rank 0 when all have written.

    Args:
        engine: between two steps.
        state: where the run stands.
        folder: the final folder; it appears under this name only once it is whole.
        fingerprints: what the run was made of (data, model), checked when it is resumed.
    """
    rank = dist.get_rank()
    unfinished = unfinished_folder(folder)
    if rank == 0:
        begin_folder(folder)
    dist.barrier()
    kinds = state_kinds(engine)
    path = unfinished / rank_file(rank)
    write_rank_file(engine, path, kinds)
    entry = {
        **describe_file(path),
        "ranges": {
            shard.name: [shard.first_expert, shard.start, shard.stop, *shard.shape]
            for shard in trained_shards(engine.module)
        },
    }
    entries: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(entries, entry)
    if rank == 0:
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "position": asdict(state.position),
            "tokens_seen": state.tokens_seen,
            "kinds": kinds,
            "optimizer_step_count": optimizer_step_count(engine),
            "fingerprints": fingerprints,
            "files": {rank_file(index): entries[index] for index in range(len(entries))},
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        describe_file(unfinished / MANIFEST)
        publish(folder)
    dist.barrier()
    logger.info("saved %s", folder)


def write_rank_file(engine: deepspeed.DeepSpeedEngine, path: Path, kinds: list[str]) -> None:
    """Write what this rank keeps, one state after the other: states in host memory may be as large
    as the memory that is left.
    """
    shards = list(trained_shards(engine.module))
    random_states = read_random_states()
    sizes = {f"{kind}:{one.name}": one.stop - one.start for one in shards for kind in kinds}
    content: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        name: (torch.float32, (size,)) for name, size in sizes.items()
    }
    content |= {name: (torch.uint8, tuple(one.shape)) for name, one in random_states.items()}
    create_file(path, content)
    locations = read_header(path)
    for shard in shards:
        for kind in kinds:
            write_range(locations[f"{kind}:{shard.name}"], 0, read_state(engine, shard, kind))
    for name, values in random_states.items():
        write_range(locations[name], 0, values)


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine, folder: Path, *, fingerprints: dict[str, Any]
) -> TrainerState:
    """Restore everything a step depends on; called by every rank.

    The number of ranks, the expert-parallel size and the ZeRO stage may differ from those that
    saved: weights and optimizer states are the same bit for bit.

    Raises:
        CheckpointError: damaged, or of a run on other data or another model.
    """
    manifest = read_manifest(folder)
    check_fingerprints(manifest["fingerprints"], fingerprints, folder)
    prepare_optimizer_states(engine, manifest["kinds"], manifest["optimizer_step_count"])
    sources = open_tensors(folder, manifest)
    for shard in trained_shards(engine.module):
        for kind, source in sources.items():
            values = torch.empty(shard.stop - shard.start)
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
                part = source.read(piece.tensor, piece.start, piece.stop)
                values[piece.offset : piece.offset + len(part)] = part
            write_state(engine, shard, kind, values.to(engine.device))
    # Ranks beyond those that saved take the states of the first ones again.
    rank_that_saved = dist.get_rank() % len(manifest["files"])
    with safe_open(folder / rank_file(rank_that_saved), "pt") as file:
        saved = set(file.keys())
        restore_random_states({name: file.get_tensor(name) for name in RANDOM if name in saved})
    publish_weights(engine)
    refresh_routers(engine)
    logger.info("resumed from %s", folder)
    return TrainerState(manifest["step"], Position(**manifest["position"]), manifest["tokens_seen"])


def read_random_states() -> dict[str, Tensor]:
    """The states of the random generators a step may use, as bytes."""
    python_state = torch.tensor(list(json.dumps(random.getstate()).encode()), dtype=torch.uint8)
    states = {PYTHON_RANDOM: python_state, CPU_RANDOM: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[DEVICE_RANDOM] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Set the random generators to saved states."""
    version, internal, gauss = json.loads(bytes(states[PYTHON_RANDOM].tolist()))
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(states[CPU_RANDOM])
    if torch.cuda.is_available() and DEVICE_RANDOM in states:  # a run on CPU has none
        torch.cuda.set_rng_state(states[DEVICE_RANDOM])
