"""What each rank of a case does: trains as a run does, and keeps what there is to compare."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad, safe_get_local_grad
from torch import Tensor, nn

from hunyuan_train.config.preference_reference import uses_reference_cache
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import Batch, cut_batch
from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.fused import is_fused
from hunyuan_train.objectives.choose import choose_objective
from hunyuan_train.objectives.log_probabilities import judge
from hunyuan_train.objectives.router_losses import watch_and_weigh
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.parallel.quantised_experts import dequantised_experts
from hunyuan_train.parallel.sequence import sequence_group
from hunyuan_train.parallel.zero import Shard, is_partitioned, weight_shards, weight_values
from hunyuan_train.selftest.record import Parts, Record
from hunyuan_train.selftest.samples import TRAINED_ADAPTERS, WEIGHTS, Step, lay_batches
from hunyuan_train.trainer.step import accumulate_gradients, update_weights


def train_case(run: ResolvedRun, steps: list[Step]) -> Record:
    """Train on this rank's share of each step, then evaluate on its share of the first."""
    _silence_libraries()
    config, shape = run.config, run.shape
    start_process_group(config.parallel.timeout_minutes)
    # As in the released model only norms stay whole, and matrices are gathered where they are used.
    adapters = TRAINED_ADAPTERS if config.lora.adapter_name_or_path else None
    engine = assemble_engine(run, WEIGHTS, largest_gathered=shape.hidden_size, adapters=adapters)
    if config.model.use_liger_kernel and not is_fused(engine.module):
        raise RuntimeError("use_liger_kernel is true, and none of its kernels is used")
    routers = watch_and_weigh(engine, shape, config.model)
    objective = choose_objective(config)
    global_batches = ask_reference(engine, config, [step_batches(config, one) for one in steps])
    engine.train()
    evaluate(engine, objective, global_batches[0])  # as a run looks at its routers first
    experts = {(tensor.name, 0): values for tensor, values in dequantised_experts(engine.module)}
    record = Record(start=as_arrays(kept_weights(engine.module) | experts))
    for batches in global_batches:
        losses = accumulate_gradients(engine, objective, batches, routers=routers)
        record.numbers.append(
            {"loss": losses.loss, "router loss": losses.router_loss, **losses.by_group}
        )
        record.gradients.append(as_arrays(kept_gradients(engine.module)))
        rate = config.optimizer.learning_rate
        record.grad_norms.append(update_weights(engine, rate, is_skipped=False))
    means = evaluate(engine, objective, global_batches[0])
    record.numbers.append({"router loss": 0.0, **means})
    record.end = as_arrays(kept_weights(engine.module) | experts)
    return record


def _silence_libraries() -> None:
    """What they say of a tiny model, hundreds of times; failures come back as errors."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.stdout = io.StringIO()


def step_batches(config: RunConfig, step: Step) -> list[Batch]:
    """This rank's micro-batches of a step."""
    size = config.parallel.sequence_parallel_size
    records = config.preferences.records
    batches = lay_batches(step, packing=config.data.packing, min_tokens=size, records=records)
    return my_share(batches, size)


def ask_reference(
    engine: deepspeed.DeepSpeedEngine, config: RunConfig, global_batches: list[list[Batch]]
) -> list[list[Batch]]:
    """The batches with what the model says of their answers before the first step.

    As a run asks for it, but for the disk. With adapters that are off in each step, nothing is
    asked before.
    """
    if not uses_reference_cache(config):
        return global_batches
    size = config.parallel.sequence_parallel_size
    group = sequence_group(size) if size > 1 else None

    def with_logps(batch: Batch) -> Batch:
        [logps] = judge(engine, [batch], group)
        mismatched = batch.mismatched and with_logps(batch.mismatched)
        return replace(batch, reference_logps=logps, mismatched=mismatched)

    return [[with_logps(batch) for batch in batches] for batches in global_batches]


def my_share(batches: list[Batch], sequence_size: int = 1) -> list[Batch]:
    """This rank's consecutive share of a global batch, and of each row, where ranks share rows."""
    group, part = divmod(dist.get_rank(), sequence_size)
    size = len(batches) * sequence_size // dist.get_world_size()
    mine = batches[group * size : (group + 1) * size]
    return [cut_batch(batch, part, sequence_size) for batch in mine]


def kept_weights(model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """This rank's weights: copied ranges of released tensors, keyed by name and first element."""
    return _cut(weight_shards(model), lambda shard: weight_values(shard).detach())


def kept_gradients(model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """This rank's accumulated gradients of what is trained; every rank takes part."""
    trained = (shard for shard in weight_shards(model) if shard.parameter.requires_grad)
    return _cut(trained, _gradient)


def as_arrays(kept: dict[tuple[str, int], Tensor]) -> Parts:
    """The same for a record."""
    return {key: values.to("cpu", torch.float32).numpy() for key, values in kept.items()}


def _gradient(shard: Shard) -> Tensor:
    if is_partitioned(shard.parameter):
        return safe_get_local_grad(shard.parameter)[: shard.stop - shard.start]
    return safe_get_full_grad(shard.parameter).flatten()[shard.start : shard.stop]


def _cut(shards: Iterable[Shard], read: Callable[[Shard], Tensor]) -> dict[tuple[str, int], Tensor]:
    kept = {}
    for shard in shards:
        values = read(shard)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
            part = values[piece.offset : piece.offset + piece.stop - piece.start]
            kept[piece.tensor.name, piece.start] = part.clone()
    return kept
