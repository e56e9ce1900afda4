"""Routers under the engine: kept in float32 beside its bfloat16, and watched.

Split: nothing; every rank routes its own tokens with whole routers. Communicated: their float32
weights after each step, 1 MB a layer at the released size.
"""

from collections.abc import Iterator
from functools import partial

import deepspeed
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from transformers import PreTrainedModel

from hunyuan_train.families.registry import FAMILIES, family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import kind_of, to_released
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.lora import is_adapter
from hunyuan_train.model.router import RouterWatch, is_pinned, pin_router, router_weight
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.expert import moe_blocks
from hunyuan_train.parallel.zero import is_partitioned, trained_shards, write_state


def routers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules with the routers' weights by released name, split or not, adapted or not."""
    family = FAMILIES[model.config.model_type]
    for name, module in model.named_modules():
        if "weight" in module._parameters and not is_adapter(name):
            weight = f"{name}.weight"
            if kind_of(family, weight) is Kind.ROUTER:
                yield to_released(family, weight), module


def pinned_routers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The routers that compute with float32 weights beside rounded ones; none in a float32 run."""
    return (router for _, router in routers(model) if is_pinned(router))


def pin_routers(model: PreTrainedModel, source: WeightSource) -> None:
    """Compute routers in float32 from here on, with the float32 values of the source."""
    for name, router in routers(model):
        weight = router_weight(router)
        if weight.dtype == torch.float32:
            continue
        shape = tuple(weight.ds_shape) if is_partitioned(weight) else tuple(weight.shape)
        stored = StoredTensor(name, shape, Kind.ROUTER)
        exact = source.read(stored, 0, stored.numel).view(shape).float()
        pin_router(router, exact.to(weight.device))


def keep_pinned_masters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Undo the rounding of the optimizer's router weights, which it copied from bfloat16."""
    pinned = pinned_routers(engine.module)
    exact = {id(router_weight(router)): router.get_buffer("float32_weight") for router in pinned}
    for shard in trained_shards(engine.module):
        if id(shard.parameter) in exact:
            values = exact[id(shard.parameter)].flatten()[shard.start : shard.stop]
            write_state(engine, shard, MASTER, values)


def refresh_routers(engine: deepspeed.DeepSpeedEngine) -> None:
    """Route with the weights that the optimizer now has; every rank takes part."""
    for router in pinned_routers(engine.module):
        weight, exact = router_weight(router), router.get_buffer("float32_weight")
        if weight.requires_grad:
            exact.copy_(safe_get_full_fp32_param(weight).view_as(exact))


def watch_routers(model: PreTrainedModel, shape: ModelShape, device: torch.device) -> RouterWatch:
    """Let a watch see every router of an initialised model, first layer to last."""
    blocks, moe = moe_blocks(model), family_of(shape).moe
    watch = RouterWatch(num_layers=len(blocks), num_experts=shape.num_experts, device=device)
    for index, block in enumerate(blocks):
        if isinstance(block, AutoEPMoELayer):
            block.router.gate.register_forward_hook(partial(_see_logits, watch, index))
            block.router.register_forward_hook(partial(_see_split_choice, watch, index))
        elif moe:
            router = block.get_submodule(moe.router.module)
            router.register_forward_hook(partial(_see_choice, watch, index))
    return watch


def _see_logits(
    watch: RouterWatch, layer: int, _: nn.Module, __: tuple[Tensor], logits_TE: Tensor
) -> None:
    watch.see_logits(layer, logits_TE)


def _see_split_choice(
    watch: RouterWatch, layer: int, _: nn.Module, __: tuple[Tensor], output: tuple[Tensor, ...]
) -> None:
    _scores, _experts, counts_E = output
    watch.see_choice(layer, counts_E)


def _see_choice(
    watch: RouterWatch, layer: int, _: nn.Module, __: tuple[Tensor], output: tuple[Tensor, ...]
) -> None:
    logits_TE, _weights, experts_TK = output
    watch.see_logits(layer, logits_TE)
    watch.see_choice(layer, count_choices(experts_TK, logits_TE.shape[1]))


def count_choices(experts_TK: Tensor, num_experts: int) -> Tensor:
    """How many token slots went to each expert: [experts], int64.

    `torch.bincount` would let the CPU wait for the GPU in every layer: it looks for the largest
    index before it makes its result.

    Args:
        experts_TK: [tokens, top_k], int64: the experts of each token.
        num_experts: of the layer.
    """
    choices = experts_TK.flatten()
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=choices.device)
    return counts_E.scatter_add_(0, choices, torch.ones_like(choices))
