"""The router's weights, applied inside of split experts: before their last product.

A token's experts are weighed and summed. Their last product is linear, so what goes into it may be
weighed instead. Then the sum's backward pass needs no outputs of experts, and no layer computes
them a second time (`row_order.py`). Weights travel with the rows that they are of. (Megatron-Core
does so too.) In float32 it is the same number but for its last digits, in bfloat16 it rounds once
less.

It is an activation of the engine's, so that all its experts, and ours in their place, know it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from deepspeed.moe import ep_experts
from deepspeed.ops.triton_ops import autoep_fused_token_ops
from torch import Tensor
from torch.nn import functional

ACTIVATION = "weighted_swiglu"


class RowWeights:
    """Weights of the rows that experts compute: [rows], float32."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.num_taken = 0

    def take(self, num_rows: int) -> Tensor:
        """Those of the next rows: the engine computes all at once, or expert after expert."""
        start = self.num_taken
        self.num_taken += num_rows
        if num_rows == len(self.weights):
            return self.weights
        return self.weights[start : self.num_taken]


running: ContextVar[RowWeights | None] = ContextVar("running", default=None)


@contextmanager
def weighing(weights: Tensor) -> Iterator[None]:
    """Let experts that run inside weigh their rows: [rows], float32."""
    token = running.set(RowWeights(weights))
    try:
        yield
    finally:
        running.reset(token)


def register_activation() -> None:
    """Teach the engine the activation; safe to call more than once."""
    if ACTIVATION not in ep_experts.EXPERT_ACTIVATIONS:
        ep_experts.register_expert_activation(
            ACTIVATION, activate, fused_fn=activate, packed_fused_fn=activate_packed
        )


def activate(gate_NI: Tensor, up_NI: Tensor, _alpha: float, _limit: float) -> Tensor:
    """What goes into experts' last product: [rows, width]."""
    weights = running.get()
    assert weights is not None, "rows of a layer come with their weights"
    result: Tensor = WeightedSwiglu.apply(gate_NI, up_NI, weights.take(len(gate_NI)))
    return result


def activate_packed(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """The same, of gate and up side by side: [rows, 2 * width]."""
    gate_NI, up_NI = gate_up.chunk(2, dim=-1)
    return activate(gate_NI, up_NI, alpha, limit)


class WeightedSwiglu(torch.autograd.Function):
    """SiLU of gate times up, times the row's weight; computed in float32, rounded once."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        gate_NI: Tensor,
        up_NI: Tensor,
        weights_N: Tensor,
    ) -> Tensor:
        """[rows, width]."""
        ctx.save_for_backward(gate_NI, up_NI, weights_N)
        return compute_forward(gate_NI, up_NI, weights_N)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient_NI: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of gate and up, [rows, width], and of weights, [rows]."""
        return compute_backward(gradient_NI.contiguous(), *ctx.saved_tensors)


def has_kernels() -> bool:
    """Whether Triton has a GPU here."""
    is_there: bool = autoep_fused_token_ops.is_available()
    return is_there


def compute_forward(gate_NI: Tensor, up_NI: Tensor, weights_N: Tensor) -> Tensor:
    """[rows, width], by one kernel where there is a GPU."""
    if has_kernels():
        from hunyuan_train.model.gating_kernel import forward  # noqa: PLC0415  with GPUs only

        return forward(gate_NI, up_NI, weights_N)
    result = functional.silu(gate_NI.float()).mul_(up_NI)
    return result.mul_(weights_N[:, None]).to(gate_NI.dtype)


def compute_backward(
    gradient_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of gate and up, [rows, width], and of weights, [rows], by one kernel where there is a GPU."""
    if has_kernels():
        from hunyuan_train.model.gating_kernel import backward  # noqa: PLC0415  with GPUs only

        return backward(gradient_NI, gate_NI, up_NI, weights_N)
    gate, up = gate_NI.float(), up_NI.float()
    of_up = functional.silu(gate).mul_(gradient_NI)
    of_weights = torch.linalg.vecdot(of_up, up)
    of_gate = (gradient_NI * up).mul_(weights_N[:, None])
    torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate)
    return of_gate.to(gate_NI.dtype), of_up.mul_(weights_N[:, None]).to(up_NI.dtype), of_weights
