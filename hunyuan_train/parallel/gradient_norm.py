"""The norm of all gradients: one all-reduce, and one read by the CPU.

The engine's stage 3 takes a norm of each of its groups, of which `lean` has one for each parameter,
482 at the released size. Each costs a copy of the gradients in float64, an all-reduce of one number
and a wait, and the CPU then reads the whole twice. Here the squares are added up on the GPU first.
(No upstream issue is known; this can go when the engine sums its groups before it asks the ranks.)
Each number is a sum in float64, as the engine's is.

Split: gradients, of which each rank holds a part. Communicated: one number a step.
"""

from functools import partial

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch import Tensor


def take_norm_at_once(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let an engine of stage 3 take its norm so, where each part of a gradient is on one rank."""
    optimizer = engine.optimizer
    is_offloaded = bool(getattr(optimizer, "offload_optimizer", False))  # of stage 3 only
    if engine.zero_optimization_stage() != 3 or is_offloaded or not holds_each_once(optimizer):
        return
    optimizer._get_norm_groups = partial(whole_norm, optimizer)


def holds_each_once(optimizer: ZeROOptimizer) -> bool:
    """Whether the ranks that share each parameter's gradients are all ranks, each with its own."""
    world = dist.get_world_size()
    for params in optimizer.fp16_groups:
        ranks = dist.get_world_size(optimizer._get_param_partition_group(params[0]))
        experts = optimizer._autoep_expert_parallel_group(params)
        if ranks * (dist.get_world_size(experts) if experts is not None else 1) != world:
            return False
    return True


@torch.no_grad()
def whole_norm(optimizer: ZeROOptimizer) -> list[Tensor]:
    """The norm of the gradients of all groups and ranks: one float64 scalar, on the CPU.

    Not finite where a gradient is not. The engine reads it several times: no wait, there.
    """
    gradients = [
        gradient for index, _ in enumerate(optimizer.fp16_groups)
        for gradient in optimizer.averaged_gradients[index]
    ]  # fmt: skip
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square)
    return [square.sqrt().cpu()]
