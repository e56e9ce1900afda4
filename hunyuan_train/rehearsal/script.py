"""The rehearsed run: what `run.py` does with a rank, at the true size, on pretended devices.

Engine, optimizer, attention, adapters, objective, checkpoint, evaluation and generation are those
of a run. Rows are made up and full; every token has a label, which is the most a row can take.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.utils import groups
from torch import Tensor, nn

from hunyuan_train.checkpoint.state import collect_content
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.data.batches.loader import Batch, cut_batch
from hunyuan_train.evaluation.engine_generation import generate_split
from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.objectives.router_losses import RouterTerms, watch_and_weigh
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.blockwise_states import BlockwiseState
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.parallel.optimizer import prepare_optimizer_states
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import (
    flat_masters,
    publish_weights,
    state_kinds,
    trained_shards,
    whole_shape,
    write_state,
)
from hunyuan_train.rehearsal.question import DOCUMENTS
from hunyuan_train.rehearsal.stand_ins import Skew
from hunyuan_train.rehearsal.watch import Watch
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.step import train_step

logger = logging.getLogger(__name__)

MINUTES = 10.0
NUM_UPDATES = 2
SHORT_PROMPT = 64
LARGE_PARAMETER = 2**26  # elements


class FakeWeights:
    """A `WeightSource` of tensors without data."""

    def read(self, _: StoredTensor, start: int, stop: int) -> Tensor:
        """Elements [start, stop): bfloat16, as released."""
        return torch.empty(stop - start, dtype=torch.bfloat16)


class WatchedClock(StepClock):
    """Tells the watch which part of a step runs."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for this part."""
        with self.watch.during(name):
            yield


@dataclass(slots=True)
class Rehearsal:
    """A run in progress."""

    run: ResolvedRun
    watch: Watch
    skew: Skew
    engine: deepspeed.DeepSpeedEngine
    routers: RouterTerms
    say: Callable[[str], None]

    def step(self, micro_steps: int) -> None:
        """One optimizer step."""
        self.skew.step += 1
        batch = make_batch(self.run, self.skew.step)
        train_step(
            self.engine,
            SFT,
            [batch] * micro_steps,
            learning_rate=self.run.config.optimizer.learning_rate,
            routers=self.routers,
            clock=WatchedClock(self.watch),
        )
        name_states(self.engine, self.watch)


def build(run: ResolvedRun, watch: Watch, skew: Skew, say: Callable[[str], None]) -> Rehearsal:
    """The engine of the run, with its weights and optimizer."""
    start_process_group(MINUTES)
    with watch.during("start"):
        engine = assemble_engine(run, FakeWeights())
        engine.train()
        routers = watch_and_weigh(engine, run.shape, run.config.model)
    skew.number_layers(engine.module)
    watch.parameter_bytes = large_parameters(engine.module, run.element_bytes)
    name_groups(run, watch)
    name_states(engine, watch)
    return Rehearsal(run, watch, skew, engine, routers, say)


def name_groups(run: ResolvedRun, watch: Watch) -> None:
    """Say what each process group is for."""
    world = torch.distributed.group.WORLD
    assert world is not None
    watch.group_names[world.group_name] = "all ranks"
    if not run.splits_experts:
        return
    for name in groups._get_expert_parallel_group_dict():
        expert = groups._get_expert_parallel_group(name)
        watch.group_names[expert.group_name] = "ranks that share experts"
        data = groups._get_expert_data_parallel_group(name)
        watch.group_names.setdefault(data.group_name, "ranks with the same experts")


def name_states(engine: deepspeed.DeepSpeedEngine, watch: Watch) -> None:
    """Tell the ledgers which storages are weights, gradients and states, by their owners."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    is_cut = engine.zero_optimization_stage() == 3
    masters = flat_masters(engine)
    owned: list[tuple[str, list[Tensor]]] = [
        ("optimizer", [*masters, *state_tensors(engine)]),
        ("small weights kept whole", [one.data for one in parameters]),
        ("weights", [one.ds_tensor if is_cut else one.data for one in parameters]),
        ("weights", list(engine.module.buffers())),
        ("engine buckets", list(bucket_tensors(optimizer))),
    ]
    if is_cut:
        buffer = optimizer.grad_partitions_flat_buffer
        owned.append(("gradients", [buffer] if torch.is_tensor(buffer) else []))
        owned.append(("gradients", [one.grad for one in masters if one.grad is not None]))
    for ledger in (watch.device, watch.host):
        for purpose, tensors in owned:
            ledger.rename(tensors, purpose)


def state_tensors(engine: deepspeed.DeepSpeedEngine) -> Iterator[Tensor]:
    """The tensors of the optimizer's states."""
    for state in engine.optimizer.optimizer.state.values():
        for value in state.values():
            if isinstance(value, BlockwiseState):
                yield from (value.codes, value.scales)
            elif torch.is_tensor(value):
                yield value


def bucket_tensors(optimizer: Any) -> Iterator[Tensor]:
    """The buffers that gradients are collected in."""
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        buffers = bucket.buffer if isinstance(bucket.buffer, (list, tuple)) else [bucket.buffer]
        yield from (one for one in buffers if torch.is_tensor(one))


def make_batch(run: ResolvedRun, seed: int) -> Batch:
    """This rank's part of a full row, of some documents; every token has a label."""
    data, train = run.config.data, run.config.train
    num_tokens = data.max_seq_length * train.per_device_train_batch_size
    bounds = np.linspace(0, num_tokens, DOCUMENTS + 1).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(0, run.shape.vocab_size, num_tokens + 1)
    row = Batch(
        input_ids=tokens[:-1].astype(np.int64),
        position_ids=np.concatenate([np.arange(size) for size in np.diff(bounds)]),
        labels=tokens[1:].astype(np.int64),
        loss_weights=np.ones(num_tokens, dtype=np.float32),
        spans=np.full(num_tokens, 2, dtype=np.uint8),
        modes=np.zeros(DOCUMENTS, dtype=np.uint8),
        cu_seqlens=bounds,
        sample_ids=np.zeros(DOCUMENTS, dtype=np.int64),
    )
    return cut_batch(row, 0, run.sequence_size) if run.sequence_size > 1 else row


def save(rehearsal: Rehearsal) -> int:
    """Collect what a checkpoint holds; bytes of this rank."""
    with rehearsal.watch.during("save"):
        content = collect_content(rehearsal.engine, rehearsal.routers.watch)
        return content.num_bytes


def resume(rehearsal: Rehearsal) -> None:
    """Give the engine states as `load_checkpoint` does, of tensors that come from nowhere."""
    engine = rehearsal.engine
    with rehearsal.watch.during("resume"):
        kinds = state_kinds(engine)
        prepare_optimizer_states(engine, NUM_UPDATES)
        for shard in trained_shards(engine.module):
            for kind in kinds:
                values = torch.empty(shard.stop - shard.start)
                write_state(engine, shard, kind, values.to(engine.device))
        publish_weights(engine)
        refresh_routers(engine)
    name_states(engine, rehearsal.watch)


def hold_out(rehearsal: Rehearsal) -> None:
    """Losses of held-out rows."""
    with rehearsal.watch.during("evaluation"):
        evaluate(rehearsal.engine, SFT, [make_batch(rehearsal.run, 0)])


def generate(rehearsal: Rehearsal) -> None:
    """An answer of a few tokens to a short prompt."""
    with rehearsal.watch.during("generation"):
        generate_split(
            rehearsal.engine, [list(range(SHORT_PROMPT))], stop_ids=[1], max_new_tokens=8
        )


def large_parameters(model: nn.Module, element_bytes: int) -> set[int]:
    """Bytes of whole parameters, so large that nothing else has the same size."""
    numbers = {whole_shape(one).numel() for one in model.parameters()}
    return {number * element_bytes for number in numbers if number >= LARGE_PARAMETER}
