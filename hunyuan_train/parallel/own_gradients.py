"""Gradients used where they lie, instead of in copies of copies.

The engine's stage 3 sends every gradient through a bucket: copied, joined with others, divided,
reduced and scattered, scaled and added to the rank's part. A group of one rank does all that with
nobody: the experts of a rank under expert parallelism over all ranks, and everything in a run of
one process. Here such a gradient is scaled and added at once. Before an update the engine also
joins the gradients of a sub-group anew, although they lie side by side in one buffer. Here that
piece of the buffer is what the optimizer gets. And it multiplies them all to clip them, also by 1.
(No upstream issue is known for any of the three. `tests/parallel/test_own_gradients.py` tells when
the engine no longer needs them.)

Split: gradients, of which each rank holds a part. Communicated: nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class OwnGradient:
    """Where a parameter's gradients are added up that no other rank has a part of."""

    total: Tensor  # [elements], a part of the engine's buffer
    scale: float  # 1 / ranks that the gradient is an average over


def use_gradients_where_they_lie(engine: deepspeed.DeepSpeedEngine) -> None:
    """Patch this engine's stage 3, after it is built and before its first backward pass.

    Other stages, and optimizers in host memory, to which gradients are copied anyway, stay as they
    are.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() != 3 or optimizer.offload_optimizer:
        return
    add_at_once(optimizer)
    take_flat_gradients(optimizer)
    clip_only_what_is_long(optimizer)


def add_at_once(optimizer: ZeROOptimizer) -> None:
    """Add gradients of groups of one rank straight to where the update finds them.

    They are added on the stream that computed them, which the update follows.
    """
    own = find_own_gradients(optimizer)
    reduce = optimizer.reduce_independent_p_g_buckets_and_remove_grads
    empty_bucket = optimizer._DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads

    @torch.no_grad()
    def add(parameter: nn.Parameter) -> None:
        gradient, new = own.get(parameter.ds_id), parameter.grad
        if gradient is None or new is None or not getattr(parameter, "ds_grad_is_ready", True):
            reduce(parameter)
            return
        dtype = optimizer.get_param_comm_dtype(parameter)
        if optimizer.ipg_buckets[dtype].params:
            # As the engine does between groups: what is collected would else lie there for longer,
            # beside the copy that it is reduced from.
            empty_bucket(dtype)
        flat = new.view(-1).to(dtype)
        if optimizer.micro_step_id:
            gradient.total.add_(flat, alpha=gradient.scale)
        elif gradient.scale == 1.0:
            gradient.total.copy_(flat)
        else:
            torch.mul(flat, gradient.scale, out=gradient.total)
        new.data = new.new_empty(0)  # its memory goes now, whoever else still holds the tensor
        parameter.grad = None

    if own:
        optimizer.reduce_independent_p_g_buckets_and_remove_grads = add
    if len(own) == sum(map(len, optimizer.fp16_groups)):  # nothing is ever collected
        for bucket in optimizer.ipg_buckets.values():
            bucket.buffer = bucket.buffer.new_empty(0) if bucket.buffer is not None else None


def find_own_gradients(optimizer: ZeROOptimizer) -> dict[int, OwnGradient]:
    """Parameters that are whole on this rank, by the engine's id."""
    totals = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
    found = {}
    for parameters in optimizer.fp16_groups:
        if dist.get_world_size(optimizer._get_param_partition_group(parameters[0])) > 1:
            continue
        scale = 1.0 / optimizer._gradient_averaging_world_size(parameters, 1)
        for parameter in parameters:
            found[parameter.ds_id] = OwnGradient(totals[parameter.ds_id], scale)
    return found


def take_flat_gradients(optimizer: ZeROOptimizer) -> None:
    """Give the optimizer a sub-group's gradients as the piece of the buffer in which they lie."""
    join: Callable[[int], None] = optimizer._prepare_fp32_grad_for_sub_group

    def take(sub_group: int) -> None:
        flat = find_flat(optimizer.averaged_gradients[sub_group])
        if flat is None:
            join(sub_group)
            return
        master = optimizer.fp32_partitioned_groups_flat[sub_group]
        master.grad = flat.to(master.dtype)
        optimizer.averaged_gradients[sub_group] = None

    optimizer._prepare_fp32_grad_for_sub_group = take


def find_flat(parts: list[Tensor]) -> Tensor | None:
    """The tensor that parts lay end to end in one storage; None where they do not.

    Args:
        parts: flat, one or more.
    """
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.dtype != first.dtype:
            return None
        end += part.nbytes
    num_elements = sum(part.numel() for part in parts)
    return first.as_strided((num_elements,), (1,), first.storage_offset())


def clip_only_what_is_long(optimizer: ZeROOptimizer) -> None:
    """Leave gradients alone whose norm is below the limit, where the CPU knows the norm."""
    clip: Callable[[int, Tensor], None] = optimizer.unscale_and_clip_grads

    def clip_long(sub_group: int, norm: Tensor) -> None:
        is_short = norm.device.type == "cpu" and float(norm) + 1e-6 <= optimizer.clip_grad
        is_unclipped = not optimizer.clip_grad or is_short
        if optimizer.loss_scale != 1.0 or not is_unclipped:
            clip(sub_group, norm)

    optimizer.unscale_and_clip_grads = clip_long
