"""Write trained adapters as a PEFT folder, which plain PEFT loads on the plain base model."""

import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from hunyuan_train.checkpoint.publish import begin_folder
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export.from_engine import FolderCheck, fault_of, seal_folder
from hunyuan_train.export.huggingface_folder import write_adapter
from hunyuan_train.export.served_tokenizer import write_new_tokens
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.lora import is_adapter
from hunyuan_train.model.new_rows import trains_new_rows_only
from hunyuan_train.parallel.zero import is_primary, weight_shards, weight_values

logger = logging.getLogger(__name__)


def export_adapter(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    config: LoraConfig,
    shape: ModelShape,
    *,
    base_model: str,
    expert_weights: str = "bf16",
    new_tokens: Mapping[str, int] | None = None,
    check: FolderCheck | None = None,
) -> str | None:
    """Write the adapters' weights and description; called by every rank.

    Args:
        engine: between two steps.
        folder: the final folder; it appears, or is replaced, only once it is whole.
        config: what the adapters were made with.
        shape: of the model.
        base_model: the model they belong on, for adapter_config.json.
        expert_weights: in which form its frozen experts were.
        new_tokens: ids of those that it brings along, by token.
        check: called on rank 0 with the finished folder before it gets its name.

    Returns:
        None, or what the disk did not take, the same on every rank: nothing is published then.
    """
    adapters = dict(gather_adapters(engine.module))

    def write() -> None:
        unfinished = begin_folder(folder)
        write_adapter(
            unfinished,
            adapters,
            config,
            shape,
            base_model=base_model,
            expert_weights=expert_weights,
        )
        write_new_tokens(unfinished, new_tokens)

    fault = fault_of(write, on_all=False) or seal_folder(folder, check)
    if fault is None:
        logger.info("exported adapters to %s", folder)
    return fault


def gather_adapters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Bring every adapter matrix to rank 0, by stored name, and those with new rows.

    Every rank must run through.

    One parameter at a time, so that no rank but the first holds more than its own. On rank 0 it
    yields whole matrices, on the others nothing.
    """
    for shard in weight_shards(model):
        if not is_adapter(shard.name) and not trains_new_rows_only(shard.parameter):
            continue
        values = weight_values(shard).detach().cpu()
        mine = [
            (piece, values[piece.offset : piece.offset + piece.stop - piece.start].clone())
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop)
        ]
        ranks: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine if is_primary(shard) else [], ranks)
        matrices: dict[str, Tensor] = {}
        for piece, part in chain.from_iterable(ranks or ()):
            tensor = piece.tensor
            whole = matrices.setdefault(tensor.name, torch.empty(tensor.shape, dtype=part.dtype))
            whole.view(-1)[piece.start : piece.stop] = part
        yield from matrices.items()
