"""Adapters on routed experts that AutoEP has split: each rank adapts its own experts.

They equal PEFT's adapters on the 3-D parameters `experts.gate_up_proj` and `experts.down_proj` (one
pair of matrices an expert; gate and up share theirs), but work on tokens instead of weights: PEFT
adds B @ A to the weights, whose gradient then has the size of the experts themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.moe.ep_experts import GroupedExperts
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.lora import adapter_scaling, draw_adapter
from hunyuan_train.parallel.zero import weight_shards, weight_values

ADAPTERS = ("gate_up_lora_A", "gate_up_lora_B", "down_lora_A", "down_lora_B")


class AdaptedExperts(GroupedExperts):
    """The engine's grouped experts with low-rank adapters.

    Shape letters:  N tokens routed here · D hidden · I intermediate · E local experts · R rank
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        *,
        rank: int,
        scaling: float,
        dtype: torch.dtype,
        **settings: object,
    ) -> None:
        super().__init__(dim, hidden_dim, num_experts, **settings)
        self.scaling = scaling
        self.is_adapted = True  # False: the base's experts, as a reference (parallel/adapters.py)

        def adapter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(num_experts, *shape, dtype=dtype))

        self.gate_up_lora_A = adapter(rank, dim)
        self.gate_up_lora_B = adapter(2 * hidden_dim, rank)
        self.down_lora_A = adapter(rank, hidden_dim)
        self.down_lora_B = adapter(dim, rank)

    def forward(self, x_ND: Tensor, num_tokens_per_expert: Tensor) -> Tensor:
        """Run each expert on its tokens.

        Args:
            x_ND: [tokens, hidden], grouped by local expert.
            num_tokens_per_expert: [local experts], int32, rows of each group.

        Returns:
            [tokens, hidden].
        """
        if not self.is_adapted:
            return super().forward(x_ND, num_tokens_per_expert)
        ends = torch.cumsum(num_tokens_per_expert, dim=0, dtype=torch.int32)

        def product(rows: Tensor, weight: Tensor) -> Tensor:
            return torch._grouped_mm(rows, weight.to(rows.dtype).transpose(-2, -1), offs=ends)

        adapted_N2I = self.scaling * product(
            product(x_ND, self.gate_up_lora_A), self.gate_up_lora_B
        )
        gate_delta_NI, up_delta_NI = adapted_N2I.chunk(2, dim=-1)
        gate_NI = product(x_ND, self.w1) + gate_delta_NI
        up_NI = product(x_ND, self.w3) + up_delta_NI
        h_NI = functional.silu(gate_NI) * up_NI
        adapted_ND = self.scaling * product(product(h_NI, self.down_lora_A), self.down_lora_B)
        return product(h_NI, self.w2) + adapted_ND


@contextmanager
def adapted_experts(config: LoraConfig, dtype: torch.dtype) -> Iterator[None]:
    """Let AutoEP build its layers with adapted experts, which it then splits like any others."""
    original = auto_ep_layer.GroupedExperts
    auto_ep_layer.GroupedExperts = partial(
        AdaptedExperts, rank=config.lora_rank, scaling=adapter_scaling(config), dtype=dtype
    )
    try:
        yield
    finally:
        auto_ep_layer.GroupedExperts = original


def start_expert_adapters(model: PreTrainedModel, *, seed: int) -> None:
    """Draw the A matrices; the B matrices stay 0.

    It comes after PEFT's own adapters, which freeze everything that is not one of them.
    """
    for module in model.modules():
        if isinstance(module, AdaptedExperts):
            for name in ADAPTERS:
                module.get_parameter(name).requires_grad_()
    for shard in weight_shards(model):
        if not shard.name.endswith(("experts.gate_up_lora_A", "experts.down_lora_A")):
            continue
        kept = weight_values(shard)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
            part = draw_adapter(piece.tensor, seed=seed)[piece.start : piece.stop]
            kept[piece.offset : piece.offset + len(part)].copy_(part)
