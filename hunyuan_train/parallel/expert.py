"""Expert parallelism: what DeepSpeed's AutoEP needs to know of a family, and what it lacks.

AutoEP replaces each MoE block by a layer that keeps 1/size of the experts and sends tokens to them
and back (two all-to-alls a layer). Split: the routed experts. Communicated: tokens. Everything else
stays under ZeRO, as without expert parallelism.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.module_inject.auto_ep_presets import registry
from deepspeed.module_inject.auto_ep_presets.base import MoEModelPreset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.family import Family, Router
from hunyuan_train.families.registry import FAMILIES, family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import layer_rows, modules_of_kind
from hunyuan_train.families.tensors import EXPERT, Kind
from hunyuan_train.model.build import model_class


def moe_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a model that have routed experts, first layer to last, split or not."""
    moe = FAMILIES[model.config.model_type].moe
    if moe is None:
        return []
    blocks = [layer.get_submodule(moe.block) for layer in model.model.layers]
    return [one for one in blocks if isinstance(one, AutoEPMoELayer) or has_router(one, moe.router)]


def has_router(block: nn.Module, router: Router) -> bool:
    """Whether a block routes tokens; the first layers of some models have a dense MLP there."""
    return any(name == router.module for name, _ in block.named_children())


def describe_for_autoep(family: Family) -> MoEModelPreset | None:
    """What AutoEP is told of a family's MoE block; None where it has none."""
    moe = family.moe
    if moe is None:
        return None
    return MoEModelPreset(
        moe_layer_pattern=rf"model\.layers\.\d+\.{moe.block}",
        router_pattern=moe.router.module,
        experts_pattern="experts",
        expert_storage="fused_3d",
        expert_w1="gate_up_proj",
        expert_w2="down_proj",
        expert_w3=None,
        num_experts_attr=moe.num_experts_field,
        top_k_attr=moe.top_k_field,
        score_func=moe.router.scores,
        score_apply="post",
        route_norm=moe.router.is_normalised,
        gate_bias=False,
        has_shared_experts=bool(moe.shared_expert),
        shared_experts_pattern=moe.shared_expert,
        hf_model_types=(family.name,),
        min_transformers_version="5.0.0",
    )


def register_families() -> None:
    """Teach AutoEP the families' blocks; safe to call more than once."""
    for family in FAMILIES.values():
        preset = describe_for_autoep(family)
        if preset:
            registry.PRESET_MODELS[family.name] = preset


def show_router_weight(model: PreTrainedModel) -> None:
    """Let AutoEP read `router.weight` where a family keeps the weight one level lower.

    Without it AutoEP ends in an AttributeError (no upstream issue is known). The property can go
    when AutoEP's presets take a path for the router's weight.
    """
    moe = FAMILIES[model.config.model_type].moe
    if moe is None or not moe.router.projection:
        return
    path = f"{moe.router.projection}.weight"
    for block in moe_blocks(model):
        router = type(block.get_submodule(moe.router.module))
        router.weight = property(lambda one: one.get_parameter(path))


def check_split_routers(model: PreTrainedModel, shape: ModelShape) -> None:
    """Refuse blocks that AutoEP has made to route otherwise than the model does.

    It takes what the DeepSpeed file says, or a preset of another model, without an error, and the
    loss looks normal: without the scale the experts of Hy3 learn at a quarter of the rate.

    Raises:
        ConfigError: naming the layer and what differs.
    """
    family = family_of(shape)
    if family.moe is None:
        return
    has_bias = bool(modules_of_kind(shape, Kind.ROUTER_BIAS))
    wanted = {
        "score_func": family.moe.router.scores,
        "route_norm": family.moe.router.is_normalised,
        "route_scale": shape.router_scale,
        "top_k": shape.moe_topk,
        "num_expert_groups": None,
        "score correction bias": has_bias,
        "shared experts": bool(family.moe.shared_expert),
        "expert_activation": "swiglu",
    }
    for name, block in model.named_modules():
        if not isinstance(block, AutoEPMoELayer):
            continue
        router = block.router
        found = {
            "score_func": router.score_func,
            "route_norm": router.route_norm,
            "route_scale": router.route_scale,
            "top_k": router.top_k,
            "num_expert_groups": router.num_expert_groups,
            "score correction bias": router.e_score_correction_bias is not None,
            "shared experts": block.shared_experts is not None,
            "expert_activation": block.experts.activation,
        }
        wrong = [
            f"{one} {found[one]}, not {wanted[one]}" for one in wanted if found[one] != wanted[one]
        ]
        if wrong:
            raise ConfigError(
                f"expert_parallel in the DeepSpeed file makes {name} compute with "
                f"{'; '.join(wrong)}, as config.json has it for {family.name}; leave all but "
                'enabled, preset_model "auto" and autoep_size out of that section'
            )


class PlaceholderExperts(nn.Module):
    """Experts of the right shapes that take no memory, for AutoEP to replace.

    They stand for a family's class of experts, beside which no parent is needed: its constructor
    would allocate every expert of the layer.
    """

    def __init__(self, config: PreTrainedConfig, *_: object) -> None:
        super().__init__()
        self.act_fn = ACT2FN[config.hidden_act]

    def give_shapes(self, shape: ModelShape, dtype: torch.dtype, device: str) -> None:
        """Register parameters whose elements are all the same one in memory."""
        self.num_experts = shape.num_experts
        module = modules_of_kind(shape, Kind.EXPERT)[0]
        width, hidden = layer_rows(shape, f"{module}.{EXPERT}.gate_proj.weight")[0].shape
        element = torch.zeros((), dtype=dtype, device=device)
        self.gate_up_proj = nn.Parameter(element.expand(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(element.expand(self.num_experts, hidden, width))


@contextmanager
def placeholder_experts(shape: ModelShape) -> Iterator[None]:
    """Build models whose experts are placeholders until AutoEP has split them.

    AutoEP otherwise starts from experts partitioned over all ranks and gathers all 64 of a layer on
    every rank (4.8 GB at the released size) to pick its own.
    """
    moe = family_of(shape).moe
    assert moe is not None, "experts are split only where a family has some"
    modeling = vars(sys.modules[model_class(shape).__module__])
    original = modeling[moe.experts_class]
    modeling[moe.experts_class] = PlaceholderExperts
    try:
        yield
    finally:
        modeling[moe.experts_class] = original


def give_placeholders_shapes(
    model: PreTrainedModel, shape: ModelShape, dtype: torch.dtype, *, has_memory: bool
) -> None:
    """Complete a model built with placeholders, outside of any partitioned construction.

    Args:
        model: in which they are.
        shape: of the model.
        dtype: of its weights.
        has_memory: whether AutoEP is to make room for a rank's experts, as it copies placeholders.
    """
    device = get_accelerator().current_device_name() if has_memory else "meta"
    for module in model.modules():
        if isinstance(module, PlaceholderExperts):
            module.give_shapes(shape, dtype, device)
