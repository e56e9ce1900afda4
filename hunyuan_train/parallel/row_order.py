"""Orders of rows around split experts, so kept that a layer's second run needs not come that far.

A layer that is computed again stops where it has saved the last tensor that its gradients need. The
engine's functions save orders of rows behind the experts, and outputs to be weighed. Here nothing
is saved behind the experts' last product: sums of outputs have weights of one (`row_weights.py`),
and orders are kept from the first run (16 bytes a row). So the second run leaves out that product,
the exchange back and the sum.

Taking a token's rows and summing them are each other's backward pass, as are both ways between the
order of ranks and that of experts.

Shape letters:  T tokens of this rank · D hidden · K experts per token · N = T * K rows of tokens ·
M rows that come to this rank's experts · P the same, each expert's rows padded
"""

from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.moe import ep_kernels
from deepspeed.ops.triton_ops import autoep_fused_token_ops
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The rows of a rank's tokens, sorted by expert."""

    order: Tensor  # [N], int64: which of the T * K places each row has
    top_k: int
    is_fused: bool  # whether one kernel sums them (`combine_impl` "fused_weighted_sum")

    def take(self, tokens_TD: Tensor) -> Tensor:
        """Each row's token: [N, D]."""
        return tokens_TD.index_select(0, self.order // self.top_k)

    def sum(self, rows_ND: Tensor) -> Tensor:
        """The sum of each token's rows, in float32, rounded once: [T, D]."""
        num_tokens, hidden = len(rows_ND) // self.top_k, rows_ND.shape[1]
        if not self.is_fused:
            places_N = ep_kernels.inverse_permutation(self.order, len(self.order))
            places_TK = places_N.view(num_tokens, self.top_k)
            return functional.embedding_bag(places_TK, rows_ND, mode="sum")
        summed = autoep_fused_token_ops.fused_weighted_restore(
            rows_ND,
            top_scores=rows_ND.new_ones((num_tokens, self.top_k), dtype=torch.float32),
            token_indices_sorted=self.order,
            top_k=self.top_k,
            shape=(1, num_tokens, hidden),
        )
        result: Tensor = summed.view(num_tokens, hidden)
        return result


class TakeRows(torch.autograd.Function):
    """Rows of tokens."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, rows: TokenRows) -> Tensor:  # noqa: ANN401
        """[T, D] to [N, D]."""
        ctx.rows = rows
        return rows.take(tokens_TD)

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """[N, D] to [T, D]."""
        return ctx.rows.sum(gradient_ND.contiguous()), None


class SumRows(torch.autograd.Function):
    """Sums of tokens' rows."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, rows: TokenRows) -> Tensor:  # noqa: ANN401
        """[N, D] to [T, D]."""
        ctx.rows = rows
        return rows.sum(rows_ND)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """[T, D] to [N, D]."""
        return ctx.rows.take(gradient_TD.contiguous()), None


@dataclass(frozen=True, slots=True)
class ExpertOrder:
    """Where rows lie once those of each local expert lie side by side."""

    rows: Tensor  # [P], int32: the row that lies there; -1: none
    places: Tensor  # [M], int64: where each row lies


def order_by_expert(counts: Tensor, num_rows: int) -> tuple[ExpertOrder | None, Tensor]:
    """The order of rows that came from one rank after the other.

    Args:
        counts: rows from each rank for each expert, [ranks, local experts], int32.
        num_rows: all of them.

    Returns:
        The order; None where rows lie as they came, those of one rank on a CPU, which needs no
        padding. And the rows of each expert, padding included: [local experts], int32.
    """
    alignment = ep_kernels.TOKEN_GROUP_ALIGN_SIZE_M
    num_ranks, num_experts = counts.shape
    most = num_rows + num_experts * alignment
    is_on_cpu = counts.device.type == "cpu"
    if is_on_cpu and num_ranks == 1:
        return None, counts[0]
    rows_P, padded_counts, _ = ep_kernels.generate_permute_indices(
        counts.reshape(-1),
        num_experts,
        num_ranks,
        -(-most // alignment) * alignment,
        alignment,
        use_cpu=is_on_cpu,
    )
    places_M = ep_kernels.inverse_permutation(rows_P, num_rows)
    return ExpertOrder(rows_P, places_M), padded_counts


def lay(rows: Tensor, rows_P: Tensor) -> Tensor:
    """Rows in an order, and zeros where it has none: [P, ...]."""
    if ep_kernels.permute_rows_supported(rows):
        laid: Tensor = ep_kernels.gather_rows(rows, rows_P)
        return laid
    if rows.dim() == 1 or not len(rows):
        return torch.cat((rows, rows.new_zeros((1, *rows.shape[1:]))))[rows_P]
    laid = rows.index_select(0, rows_P.clamp(min=0))
    laid[rows_P < 0] = 0  # on CPUs, which need not wait for this
    return laid


class ToExperts(torch.autograd.Function):
    """Rows, and their weights, from the order of ranks to that of experts."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rows_MD: Tensor,
        weights_M: Tensor,
        order: ExpertOrder,
    ) -> tuple[Tensor, Tensor]:
        """To [P, D] and [P]; zeros are padding."""
        ctx.save_for_backward(order.places)
        return lay(rows_MD, order.rows), lay(weights_M, order.rows)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient_PD: Tensor,
        gradient_P: Tensor,
    ) -> tuple[Tensor, Tensor, None]:
        """Back to [M, D] and [M]."""
        (places_M,) = ctx.saved_tensors
        return gradient_PD.index_select(0, places_M), gradient_P.index_select(0, places_M), None


class FromExperts(torch.autograd.Function):
    """Rows from the order of experts to that of ranks."""

    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, order: ExpertOrder) -> Tensor:  # noqa: ANN401
        """[P, D] to [M, D]."""
        ctx.rows_P = order.rows
        return rows_PD.index_select(0, order.places)

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Back to [P, D]; zeros are padding."""
        return lay(gradient_MD.contiguous(), ctx.rows_P), None
