"""The norm of all gradients, which all ranks know with the losses: nothing is asked or read twice.

The engine's stage 3 takes a norm of each of its groups, of which `lean` has one for each parameter,
482 at the released size. Each costs a copy of the gradients in float64, an all-reduce of one number
and a wait, and the CPU then reads the whole twice. Here each rank adds its squares up on the GPU.
They travel with the losses, and the engine is told what came of it.
(No upstream issue is known; this can go when the engine sums its groups before it asks the ranks.)
Each number is a sum in float64, as the engine's is.

Split: gradients, of which each rank holds a part. Communicated: one number a step.
"""

from collections.abc import Sequence

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch import Tensor

BLOCK_ELEMENTS = 2**16  # whose float64 copy fits the second cache of a core


@torch.no_grad()
def squared_norm(engine: deepspeed.DeepSpeedEngine) -> Tensor:
    """The sum of squares of the gradients that this rank holds, after the last backward pass.

    Returns:
        float64, on the engine's device: [1], or [0] where the engine is to take the norm itself.
        That is so in stages without split weights and where the optimizer is in host memory.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() != 3 or not holds_each_once(optimizer):
        return torch.zeros(0, dtype=torch.float64, device=engine.device)
    gradients = [
        gradient for index, _ in enumerate(optimizer.fp16_groups)
        for gradient in optimizer.averaged_gradients[index]
    ]  # fmt: skip
    if engine.device.type == "cpu":
        return sum_squares_on_cpu(gradients)[None]
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)
    return torch.stack(norms).square().sum()[None]


def sum_squares_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements, float64: [].

    Not by torch's norm, which copies a tensor to float64 whole: a tenth of the time of a step went
    there. A block's copy is still in the core's cache when it is read.

    Args:
        tensors: flat.
    """
    total = torch.zeros((), dtype=torch.float64)
    block = torch.empty(BLOCK_ELEMENTS, dtype=torch.float64)
    for tensor in tensors:
        for part in tensor.split(BLOCK_ELEMENTS):
            exact = block[: len(part)].copy_(part)
            total += torch.dot(exact, exact)
    return total


def holds_each_once(optimizer: ZeROOptimizer) -> bool:
    """Whether each part of a gradient is on the GPU of one rank and of no other."""
    if optimizer.offload_optimizer:
        return False
    world = dist.get_world_size()
    for params in optimizer.fp16_groups:
        ranks = dist.get_world_size(optimizer._get_param_partition_group(params[0]))
        experts = optimizer._autoep_expert_parallel_group(params)
        if ranks * (dist.get_world_size(experts) if experts is not None else 1) != world:
            return False
    return True


def give_norm(engine: deepspeed.DeepSpeedEngine, squares: list[float]) -> None:
    """Tell the engine's next step the norm of its gradients, so that it need not take it.

    Args:
        engine: that is about to step, or to drop its gradients.
        squares: `squared_norm` summed over all ranks. The norm is not finite where a gradient is
            not.
    """
    if not squares:
        return
    norm = torch.tensor(squares, dtype=torch.float64).sqrt()
    optimizer = engine.optimizer

    def known_norm() -> list[Tensor]:
        del optimizer._get_norm_groups  # the engine's own again: gradients change after this step
        return [norm[0]]

    optimizer._get_norm_groups = known_norm
