"""The way of tokens through a layer of split experts, in place of the engine's own.

The engine sends tokens to the ranks that have their experts, runs these, sends their outputs back,
and then computes the shared expert. Here the shared expert, which needs no other rank, is computed
while tokens travel (`parallel/token_exchange.py`). All else is as in the engine's
`AutoEPMoELayer._forward`, and by its functions. (No upstream issue is known; this can go when the
engine does so itself.) DeepEP sends rows by itself: its layers stay as they are.

Split: experts. Communicated: tokens.

Shape letters:  T tokens of this rank · D hidden · E experts · K experts per token · N rows of
tokens, one for each of a token's experts · M rows that come to this rank's experts
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.module_inject.auto_ep_comm import COMM_BACKEND
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.ops.triton_ops import autoep_fused_token_ops
from torch import Tensor, nn

from hunyuan_train.parallel.token_exchange import Arrive, Depart, Exchange

FUSED = "fused_weighted_sum"  # of `combine_impl`


def overlap_exchanges(blocks: Iterable[nn.Module]) -> None:
    """Let layers that exchange tokens compute their shared expert meanwhile.

    Args:
        blocks: of the model, after the engine has split their experts, where it does.
    """
    for block in blocks:
        if isinstance(block, AutoEPMoELayer) and can_overlap(block):
            block._forward = partial(run_layer, block)


def can_overlap(layer: AutoEPMoELayer) -> bool:
    """Whether a layer exchanges tokens by the engine's all-to-all."""
    return layer.ep_size > 1 and layer.comm_backend == COMM_BACKEND


def run_layer(layer: Any, hidden_states: Tensor) -> Tensor:  # noqa: ANN401 the engine's
    """Experts of a layer, routed and shared: [1, tokens, hidden], and so its result."""
    x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
    if layer.combine_impl == FUSED:  # on no rank after others have begun to exchange
        autoep_fused_token_ops.assert_supported(x_TD, score_apply=layer.score_apply)
    scores_TK, experts_TK, counts_E = layer.router(x_TD, layer.expert_bias)
    pending = layer._start_async_split_plan(counts_E) if layer.async_split_plan else None
    with torch.no_grad():
        layer.tokens_per_expert.add_(counts_E)
    order_N = torch.argsort(experts_TK.view(-1), stable=True)
    # One name for rows on all their way: none are held longer than they are read.
    rows = x_TD[order_N // layer.top_k]
    plan = finish_plan(layer, pending, experts_TK, counts_E)
    exchange = Exchange(layer.ep_group, plan.input_splits, plan.output_splits)
    rows = Depart.apply(rows, exchange)
    shared = layer.shared_experts(hidden_states)
    rows = Arrive.apply(rows, exchange)
    rows, indices, aligned_counts, num_rows = auto_ep_layer.permute_by_local_expert(
        rows, plan.local_counts_by_source
    )
    rows = layer.experts(rows, aligned_counts)
    rows = auto_ep_layer.unpermute_by_local_expert(rows, indices, num_rows)
    rows = auto_ep_layer._AllToAllV.apply(
        layer.ep_group, rows, plan.output_splits, plan.input_splits
    )
    return add_shared(combine(layer, rows, scores_TK, order_N, hidden_states.shape), shared)


def finish_plan(layer: Any, pending: Any, experts_TK: Tensor, counts_E: Tensor) -> Any:  # noqa: ANN401
    """How many rows ranks send each other: of a plan that was begun, or made now."""
    if pending is not None:
        return layer._wait_async_split_plan(pending)
    return auto_ep_layer.compute_split_plan(
        experts_TK,
        layer.num_experts,
        layer.ep_size,
        layer.num_local_experts,
        layer.ep_group,
        counts_E,
    )


def combine(
    layer: Any,  # noqa: ANN401
    outputs_ND: Tensor,
    scores_TK: Tensor,
    order_N: Tensor,
    shape: torch.Size,
) -> Tensor:
    """Sum what a token's experts gave, by the router's weights: [1, tokens, hidden]."""
    if layer.combine_impl == FUSED:
        weigh = autoep_fused_token_ops.fused_weighted_restore
    else:
        weigh = partial(
            auto_ep_layer.combine_from_routed,
            score_apply=layer.score_apply,
            combine_impl=layer.combine_impl,
        )
    result: Tensor = weigh(
        outputs_ND,
        top_scores=scores_TK,
        token_indices_sorted=order_N,
        top_k=layer.top_k,
        shape=tuple(shape),
    )
    return result


def add_shared(routed: Tensor, shared: Tensor) -> Tensor:
    """Both kinds of experts together: [1, tokens, hidden]."""
    return routed + shared
