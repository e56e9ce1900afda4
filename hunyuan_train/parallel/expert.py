"""Expert parallelism: what DeepSpeed's AutoEP needs to know of Hunyuan, and what it lacks.

AutoEP replaces each MoE block by a layer that keeps 1/size of the experts and sends tokens to them
and back (two all-to-alls a layer). Split: the routed experts. Communicated: tokens. Everything else
stays under ZeRO, as without expert parallelism.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.module_inject.auto_ep_presets import registry
from deepspeed.module_inject.auto_ep_presets.base import MoEModelPreset
from torch import nn
from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM
from transformers.activations import ACT2FN
from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as modeling
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import (
    HunYuanMoEV1Experts,
    HunYuanMoEV1Gate,
)

PRESET_NAME = "hunyuan_v1_moe"

PRESET = MoEModelPreset(
    moe_layer_pattern=r"model\.layers\.\d+\.mlp",
    router_pattern="gate",
    experts_pattern="experts",
    expert_storage="fused_3d",
    expert_w1="gate_up_proj",
    expert_w2="down_proj",
    expert_w3=None,
    num_experts_attr="num_experts",
    top_k_attr="moe_topk",
    score_func="softmax",
    score_apply="post",
    route_norm=True,
    gate_bias=False,
    has_shared_experts=True,
    shared_experts_pattern="shared_mlp",
    hf_model_types=(PRESET_NAME,),
    min_transformers_version="5.0.0",
)


def register_hunyuan() -> None:
    """Teach AutoEP the Hunyuan block; safe to call more than once.

    AutoEP reads `router.weight`, and Hunyuan's router keeps its weight one level lower, at `wg`
    (AttributeError otherwise; no upstream issue is known). The property can go when AutoEP's
    presets take a path for the router's weight.
    """
    registry.PRESET_MODELS[PRESET_NAME] = PRESET
    HunYuanMoEV1Gate.weight = property(lambda gate: gate.wg.weight)


class HollowExperts(HunYuanMoEV1Experts):
    """Experts of the right shapes that take no memory, for AutoEP to replace."""

    def __init__(self, config: HunYuanMoEV1Config) -> None:
        nn.Module.__init__(self)  # not the parent's: it would allocate every expert of the layer
        self.num_experts = config.num_experts
        self.act_fn = ACT2FN[config.hidden_act]

    def give_shapes(self, config: HunYuanMoEV1Config, dtype: torch.dtype) -> None:
        """Register parameters whose elements are all the same one in memory."""
        hidden, width = config.hidden_size, config.intermediate_size
        element = torch.zeros((), dtype=dtype, device=get_accelerator().current_device_name())
        self.gate_up_proj = nn.Parameter(element.expand(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(element.expand(self.num_experts, hidden, width))


@contextmanager
def hollow_experts() -> Iterator[None]:
    """Build models whose experts are hollow until AutoEP has split them.

    AutoEP otherwise starts from experts partitioned over all ranks and gathers all 64 of a layer on
    every rank (4.8 GB at the released size) to pick its own.
    """
    original = modeling.HunYuanMoEV1Experts
    modeling.HunYuanMoEV1Experts = HollowExperts
    try:
        yield
    finally:
        modeling.HunYuanMoEV1Experts = original


def give_hollow_experts_shapes(model: HunYuanMoEV1ForCausalLM, dtype: torch.dtype) -> None:
    """Complete a model built with hollow experts, outside of any partitioned construction."""
    for module in model.modules():
        if isinstance(module, HollowExperts):
            module.give_shapes(model.config, dtype)
