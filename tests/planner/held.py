"""What the processes of a real engine hold: bytes of live tensors, by what they are for."""

import gc
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.parallel.zero import flat_masters
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import make_batch
from tests.config.resolved import resolve_flags
from tests.engines import save_checkpoint

Bytes = dict[str, int]


@dataclass
class Storages:
    """Distinct storages and their bytes; views of one count once."""

    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Bytes that these tensors add to what was counted before."""
        before = sum(self.sizes.values())
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                self.sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return sum(self.sizes.values()) - before


def resolved(flags: Sequence[str], shape: ModelShape, world: int) -> ResolvedRun:
    """The run of some flags on as many CPU cores as ranks."""
    arguments = ["--recipe", "tiny", "--num_processes", str(world), *flags]
    return resolve_flags(arguments, Machine(num_gpus=0, num_cores=world), shape=shape)


def measure(flags: Sequence[str], shape: ModelShape, lengths: list[int]) -> Bytes:
    """Train a step on this rank as a run would, and count what is held then and in the next."""
    start_process_group(timeout_minutes=2)
    run = resolved(flags, shape, dist.get_world_size())
    source = SeededWeights(seed=1, standard_deviation=shape.initializer_range)
    engine = assemble_engine(run, source)
    engine.train()
    batch = make_batch(np.random.default_rng(dist.get_rank()), lengths)
    train_step(engine, SFT, [batch], learning_rate=1e-4)
    held = Storages()
    counted = count_states(engine, held)
    counted["activations"] = run_forward_and_backward(engine, batch, held)
    if engine.zero_optimization_stage() < 3:  # which has gradients until the update only
        counted["gradients"] = held.add(partitioned_gradients(engine))
    counted["checkpoint"] = count_checkpoint(engine)
    return counted


def count_states(engine: deepspeed.DeepSpeedEngine, held: Storages) -> Bytes:
    """Weights, gradients and optimizer between two steps."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    is_cut = engine.zero_optimization_stage() == 3
    counted = {
        "weights": held.add(one.ds_tensor if is_cut else one.data for one in parameters)
        + held.add(engine.module.buffers()),
        "small weights kept whole": held.add(one.data for one in parameters),
    }
    if is_cut:
        counted["gradients"] = held.add([optimizer.grad_partitions_flat_buffer])
    masters = flat_masters(engine)
    counted["optimizer"] = held.add(masters) + held.add(optimizer_states(engine))
    counted["float32 gradients"] = held.add(one.grad for one in masters if one.grad is not None)
    return counted


def optimizer_states(engine: deepspeed.DeepSpeedEngine) -> Iterable[Tensor]:
    """The tensors of the optimizer's states, but for its step counters."""
    for state in engine.optimizer.optimizer.state.values():
        for value in state.values():
            parts = [value] if torch.is_tensor(value) else []
            if hasattr(value, "codes"):  # a coded state and its scales
                parts = [value.codes, value.scales]
            yield from (part for part in parts if part.dim())


def partitioned_gradients(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """Gradients of this rank's range under stage 2, after backward."""
    groups = engine.optimizer.averaged_gradients.values()
    return [gradient for group in groups if group for gradient in group]


def run_forward_and_backward(
    engine: deepspeed.DeepSpeedEngine, batch: Batch, held: Storages
) -> int:
    """Bytes that forward saves for backward; what was held before is not counted again."""
    saved, kept = Storages(), []  # kept, so that no storage's place is taken by the next one
    earlier = held.sizes.keys() | {address(tensor) for tensor in live_tensors()}

    def pack(tensor: Tensor) -> Tensor:
        gathered = {address(one.data) for one in engine.module.parameters()}
        if address(tensor) not in gathered | held.sizes.keys():
            saved.add([tensor])
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = token_losses(engine, batch).sum()
    # Selective recomputation keeps what it selects in a table of its own.
    gathered = {address(one.data) for one in engine.module.parameters()}
    saved.add(one for one in live_tensors() if address(one) not in earlier | gathered)
    engine.backward(loss)
    return sum(saved.sizes.values())


def live_tensors() -> list[Tensor]:
    """Every tensor that Python knows of."""
    return [one for one in gc.get_objects() if issubclass(type(one), Tensor)]


def address(tensor: Tensor) -> int:
    """Where a tensor's storage lies."""
    return tensor.untyped_storage().data_ptr()


def count_checkpoint(engine: deepspeed.DeepSpeedEngine) -> int:
    """Bytes of a checkpoint's tensors, of all ranks, without the states of random generators."""
    with tempfile.TemporaryDirectory() as name:
        names = [name]
        dist.broadcast_object_list(names)
        folder = Path(names[0], "step-000001")  # of rank 0, for all
        save_checkpoint(engine, TrainerState(), folder)
        num_bytes = sum(
            location.num_bytes
            for file in folder.glob("*.safetensors")
            for name, location in read_header(file).items()
            if not name.startswith("random_state")
        )
        dist.barrier()
    return num_bytes
