"""What the processes of a real engine hold: bytes of live tensors, by what they are for."""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.model.shape import ModelShape
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.trainer.step import forward_losses, train_step
from hunyuan_train.run import make_engine
from tests.batches import make_batch


@dataclass
class Storages:
    """Distinct storages and their bytes; views of one count once."""

    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Bytes that these tensors add to what was counted before."""
        added = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.sizes and storage.nbytes():
                self.sizes[storage.data_ptr()] = storage.nbytes()
                added += storage.nbytes()
        return added


def measure(flags, shape: ModelShape, world: int, lengths, verbose=False):
    start_process_group(timeout_minutes=2)
    config = load_config(flags)
    config = resolve_config(config, machine=Machine(num_gpus=0, num_cores=world), num_experts=shape.num_experts)
    source = SeededWeights(seed=1, standard_deviation=0.05)
    engine = make_engine(config, shape, source)
    engine.train()
    generator = np.random.default_rng(0)
    batch = make_batch(generator, lengths)
    train_step(engine, [batch], learning_rate=1e-4)
    held = Storages()
    result = {}
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        result["weights"] = held.add([p.ds_tensor for p in engine.module.parameters()])
        result["gathered"] = held.add([p.data for p in engine.module.parameters()])
        result["gradients"] = held.add([optimizer.grad_partitions_flat_buffer])
        masters = optimizer.fp32_partitioned_groups_flat
        result["master"] = held.add(masters)
        result["mastergrad"] = held.add([m.grad for m in masters if m.grad is not None])
    else:
        result["weights"] = held.add([p.data for p in engine.module.parameters()])
        masters = optimizer.single_partition_of_fp32_groups
        result["master"] = held.add(masters)
        result["gradients"] = held.add([g for v in optimizer.averaged_gradients.values() if v for g in v])
        result["mastergrad"] = held.add([m.grad for m in masters if m.grad is not None])
    states = [t for s in optimizer.optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.numel() > 1]
    result["states"] = held.add(states)
    result["buffers"] = held.add(engine.module.buffers())
    buckets = []
    for b in optimizer.ipg_buckets.values():
        buckets += b.buffer if isinstance(b.buffer, list) else [b.buffer]
    result["buckets"] = held.add(b for b in buckets if b is not None)
    saved = Storages()
    keep = []
    kinds = {}
    weight_ptrs = set(held.sizes) 
    import traceback
    def pack(t):
        ptr = t.untyped_storage().data_ptr()
        if ptr in weight_ptrs or any(p.data.untyped_storage().data_ptr() == ptr for p in engine.module.parameters() if p.numel()):
            return t
        n = saved.add([t])
        keep.append(t)
        if n and verbose:
            where = [f for f in traceback.extract_stack() if "transformers" in f.filename or "deepspeed/mod" in f.filename or "deepspeed/moe" in f.filename or "hunyuan_train" in f.filename][-1]
            key = (f"{where.filename.split('/')[-1]}:{where.lineno} {where.line[:60]}", tuple(t.shape), str(t.dtype)[6:], n)
            kinds[key] = kinds.get(key, 0) + 1
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward_losses(engine, batch).sum()
    result["activations"] = sum(saved.sizes.values())
    result["tokens"] = sum(lengths)
    engine.backward(loss)
    if engine.zero_optimization_stage() == 2:
        result["gradients"] = held.add([g for v in optimizer.averaged_gradients.values() if v for g in v])
    if verbose:
        result["kinds"] = kinds
    return result
