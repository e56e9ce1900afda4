"""Adapters on routed experts that AutoEP has split: each rank adapts its own experts.

They equal PEFT's adapters on the 3-D parameters `experts.gate_up_proj` and `experts.down_proj` (one
pair of matrices an expert; gate and up share theirs), but work on tokens instead of weights: PEFT
adds B @ A to the weights, whose gradient then has the size of the experts themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.moe.ep_experts import GroupedExperts, apply_expert_activation
from torch import Tensor, nn
from transformers import PreTrainedModel

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.families.tensors import pieces_of_range
from hunyuan_train.model.lora import draw_adapter
from hunyuan_train.parallel.zero import weight_shards, weight_values

ADAPTERS = ("gate_up_lora_A", "gate_up_lora_B", "down_lora_A", "down_lora_B")


class Activated(Protocol):
    """Experts that know what lies between their projections, in the engine's words."""

    activation: str
    activation_alpha: float
    activation_limit: float

    def get_parameter(self, target: str) -> nn.Parameter:
        """A matrix of their adapters."""
        ...


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
        register_adapters(self, dim, hidden_dim, num_experts, rank=rank, dtype=dtype)

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

        def base_product(rows: Tensor, name: str) -> Tensor:
            return grouped_product(rows, self.get_parameter(name), ends)

        return run_adapted(self, x_ND, ends, base_product, scaling=self.scaling)


def register_adapters(
    experts: nn.Module,
    dim: int,
    hidden_dim: int,
    num_experts: int,
    *,
    rank: int,
    dtype: torch.dtype,
) -> None:
    """Give a module of experts the matrices of its adapters, all zeros."""
    sizes = ((rank, dim), (2 * hidden_dim, rank), (rank, hidden_dim), (dim, rank))
    for name, size in zip(ADAPTERS, sizes, strict=True):
        zeros = torch.zeros(num_experts, *size, dtype=dtype)
        experts.register_parameter(name, nn.Parameter(zeros))


def has_adapters(module: nn.Module) -> bool:
    """Whether a module is one of experts with adapters of their own."""
    return any(name == ADAPTERS[0] for name, _ in module.named_parameters(recurse=False))


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows, grouped by expert up to `ends`, times each expert's [outputs, inputs], transposed."""
    return torch._grouped_mm(rows, weight.to(rows.dtype).transpose(-2, -1), offs=ends)


def run_adapted(
    experts: Activated,
    x_ND: Tensor,
    ends: Tensor,
    base_product: Callable[[Tensor, str], Tensor],
    *,
    scaling: float,
) -> Tensor:
    """Run adapted experts on their tokens.

    Args:
        experts: with the matrices of its adapters.
        x_ND: [tokens, hidden], grouped by local expert.
        ends: [local experts], int32, of the groups.
        base_product: rows times the base's projection of that name.
        scaling: of the adapters' products.

    Returns:
        [tokens, hidden].
    """

    def adapt(rows: Tensor, name: str) -> Tensor:
        # Scaled where it is narrow: a second tensor as wide as the result is never there.
        inner = scaling * grouped_product(rows, experts.get_parameter(f"{name}_lora_A"), ends)
        return grouped_product(inner, experts.get_parameter(f"{name}_lora_B"), ends)

    delta_NI = adapt(x_ND, "gate_up")  # [tokens, 2 * intermediate]
    gate_delta_NI, up_delta_NI = delta_NI.chunk(2, dim=-1)
    gate_NI = base_product(x_ND, "w1").add_(gate_delta_NI)
    up_NI = base_product(x_ND, "w3").add_(up_delta_NI)
    del delta_NI, gate_delta_NI, up_delta_NI  # the largest of all, and no gradient needs them
    h_NI = activate(experts, gate_NI, up_NI)
    # A layer's second run ends where it has saved what the last product needs (row_order.py): the
    # base's, which takes longest, is last.
    delta_ND = adapt(h_NI, "down")
    return base_product(h_NI, "w2").add_(delta_ND)


def activate(experts: Activated, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """What goes down, [tokens, intermediate], as the engine's own experts make it."""
    return apply_expert_activation(
        gate_NI,
        up_NI,
        experts.activation,
        experts.activation_alpha,
        experts.activation_limit,
        fused=gate_NI.is_cuda,  # where the engine's kernel is
    )


@contextmanager
def adapted_experts(config: LoraConfig, dtype: torch.dtype) -> Iterator[None]:
    """Let AutoEP build its layers with adapted experts, which it then splits like any others."""
    original = auto_ep_layer.GroupedExperts
    auto_ep_layer.GroupedExperts = partial(
        AdaptedExperts, rank=config.lora_rank, scaling=config.scaling, dtype=dtype
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
        if has_adapters(module):
            for name in ADAPTERS:
                module.get_parameter(name).requires_grad_()
    for shard in weight_shards(model):
        if not shard.name.endswith(("experts.gate_up_lora_A", "experts.down_lora_A")):
            continue
        kept = weight_values(shard)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
            part = draw_adapter(piece.tensor, seed=seed)[piece.start : piece.stop]
            kept[piece.offset : piece.offset + len(part)].copy_(part)
