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
from safetensors.torch import save_file
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    FORMAT_VERSION,
    MANIFEST,
    describe_file,
    rank_file,
    read_manifest,
)
from hunyuan_train.checkpoint.fragments import open_tensors
from hunyuan_train.checkpoint.publish import begin_folder, publish, unfinished_folder
from hunyuan_train.data.loader import Position
from hunyuan_train.model.layout import pieces_of_range
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import (
    Shard,
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

CPU_RANDOM, DEVICE_RANDOM = "random_state.cpu", "random_state.device"


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
    shards = list(trained_shards(engine.module))
    kinds = state_kinds(engine)
    tensors = {
        f"{kind}:{shard.name}": read_state(engine, shard, kind).contiguous()
        for shard in shards
        for kind in kinds
    }
    path = unfinished / rank_file(rank)
    save_file(tensors | _random_states(), path, metadata={"python_random": _python_random_state()})
    entry = {
        **describe_file(path),
        "ranges": {shard.name: _describe_range(shard) for shard in shards},
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
    _check_fingerprints(manifest["fingerprints"], fingerprints, folder)
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
        _restore_random_states(file)
    publish_weights(engine)
    refresh_routers(engine)
    logger.info("resumed from %s", folder)
    return TrainerState(manifest["step"], Position(**manifest["position"]), manifest["tokens_seen"])


def _describe_range(shard: Shard) -> list[int]:
    return [shard.first_expert, shard.start, shard.stop, *shard.shape]


def _check_fingerprints(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    changed = sorted(name for name in current if saved.get(name) != current[name])
    if changed:
        name = changed[0]
        raise CheckpointError(
            f"{folder} was trained with another {name} ({saved.get(name)}, now {current[name]}); "
            "restore it, or start a new run in another output_dir"
        )


def _python_random_state() -> str:
    version, internal, gauss = random.getstate()
    return json.dumps([version, list(internal), gauss])


def _random_states() -> dict[str, Tensor]:
    states = {CPU_RANDOM: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[DEVICE_RANDOM] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(file: safe_open) -> None:
    version, internal, gauss = json.loads(file.metadata()["python_random"])
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(file.get_tensor(CPU_RANDOM))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(file.get_tensor(DEVICE_RANDOM))
