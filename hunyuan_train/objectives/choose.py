"""The objective that a run asks for, and the reference that it is held to."""

from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from hunyuan_train.config.preference_reference import reference_is_base, uses_reference_cache
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import DataShard
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.objectives.preferences import make_preference_objective
from hunyuan_train.objectives.reference_cache import Judge, with_reference
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.sequence import sequence_group


def choose_objective(config: RunConfig) -> Objective:
    """What a run minimises; called by every rank, once there is a process group."""
    if config.preferences.objective == "sft":
        return SFT
    return make_preference_objective(
        config.preferences,
        group=_row_group(config),
        reference_is_base=reference_is_base(config),
    )


def ask_reference(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    dataset: Dataset,
    shard: DataShard,
    *,
    model: dict[str, Any],
    cache_dir: Path,
) -> Dataset:
    """The data with what the reference says of it, where the run keeps that; called by every rank.

    Args:
        config: of the run.
        engine: as it is before the first step, no checkpoint loaded.
        dataset: training or held-out data.
        shard: how rows are dealt out.
        model: what tells the model that training starts from apart from others.
        cache_dir: where it is kept.
    """
    if not uses_reference_cache(config):
        return dataset
    by = Judge(engine, shard, _row_group(config), config.data.packing)
    return with_reference(dataset, by, model, config, cache_dir)


def _row_group(config: RunConfig) -> dist.ProcessGroup | None:
    size = config.parallel.sequence_parallel_size
    return sequence_group(size) if size > 1 else None
