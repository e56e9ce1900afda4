"""Weights that are their own master copy: what the engine lacks for the lean optimizer.

With bfloat16 weights and bfloat16 masters the engine still keeps both, 2 bytes a parameter for a
second copy of the same bits (its stage 3 means to share them, but compares a device with its name,
which is never equal; its stages 1 and 2 clone). Here the copy is replaced by the weights, right
after the engine has made it and before optimizer states exist, so that both together never hold
more than training does. What must stay exact keeps a float32 master: norms and biases, whose steps
are tiny beside them, and routers (`parallel/routers.py`).
"""

from collections.abc import Iterator
from functools import partial
from math import inf

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch import Tensor, nn

from hunyuan_train.model.router import is_pinned, router_weight
from hunyuan_train.parallel.zero import flat_masters, num_dimensions

NORM_ADDED = 1e-6  # to the norm that is clipped by, as the engine does


def exact_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that keep a float32 master beside their bfloat16 weights."""
    routers = {id(router_weight(one)) for one in model.modules() if is_pinned(one)}
    for parameter in model.parameters():
        if id(parameter) in routers or num_dimensions(parameter) < 2:
            yield parameter


def share_masters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let the optimizer update the weights themselves, in an engine with bfloat16 masters.

    Called once, before the first step. Every flat tensor of the engine holds one parameter, because
    the optimizer's groups do.
    """
    optimizer = engine.optimizer
    exact = {id(parameter) for parameter in exact_parameters(engine.module)}
    masters = flat_masters(engine)
    for index, (parameter, weights) in enumerate(flat_weights(engine)):
        master = weights.detach().float() if id(parameter) in exact else weights.detach()
        masters[index] = master.requires_grad_()
    if engine.zero_optimization_partition_weights():
        # From here on the engine reads this only to gather a whole master, a router's, say.
        optimizer.master_weights_and_grads_dtype = torch.float32
        optimizer.unscale_and_clip_grads = partial(pass_scale_on, optimizer)
        return
    for group, master in zip(optimizer.optimizer.param_groups, masters, strict=True):
        group["params"] = [master]
    optimizer._link_all_hp_params()  # parameters point to the part of their master kept here


def share_float32_masters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let the optimizer update float32 weights themselves, under stage 3 and on their own device.

    The engine means to do so and clones them all the same, by the comparison named above. What it
    copies from masters to weights after an update is then one memory, which torch leaves alone.
    """
    optimizer = engine.optimizer
    if not engine.zero_optimization_partition_weights() or optimizer.offload_optimizer:
        return
    masters = flat_masters(engine)
    for index, weights in enumerate(optimizer.fp16_partitioned_groups_flat):
        masters[index] = weights.detach().requires_grad_()


def pass_scale_on(optimizer: ZeROOptimizer, sub_group: int, norm: Tensor) -> None:
    """Let the update scale and clip gradients as it reads them, which the engine does beforehand.

    That reads and writes all of them once more, and rounds them to the training dtype.

    Args:
        optimizer: the engine's, of stage 3.
        sub_group: that is updated next; the first one's scale is that of all.
        norm: of all gradients, as they are: with the loss scale. A scalar, of the CPU where
            `parallel/gradient_norm.py` took it.
    """
    if sub_group:
        return
    clip = (float(norm) / optimizer.loss_scale + NORM_ADDED) / (optimizer.clip_grad or inf)
    optimizer.optimizer.gradient_scale = 1 / (max(clip, 1.0) * optimizer.loss_scale)


def flat_weights(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The parameter in each of the engine's flat tensors, and the part of it this rank updates."""
    optimizer = engine.optimizer
    if engine.zero_optimization_partition_weights():
        groups, flats = optimizer.fp16_groups, optimizer.fp16_partitioned_groups_flat
    else:
        groups, partitions = optimizer.bit16_groups, optimizer.parallel_partitioned_bit16_groups
        ranks = [dist.get_rank(group) for group in optimizer.real_dp_process_group]
        flats = [parts[rank] for parts, rank in zip(partitions, ranks, strict=True)]
    for (parameter,), flat in zip(groups, flats, strict=True):
        yield parameter, flat
