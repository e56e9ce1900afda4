"""The way of tokens through a layer of split experts, in place of the engine's own.

The engine sends tokens to the ranks that have their experts, runs these, sends their outputs back,
weighs and sums them, and then computes the shared expert. Here the shared expert, which needs no
other rank, is computed while tokens travel (`token_exchange.py`). Rows are weighed inside of the
experts (`row_weights.py`), so that a layer's second run is done before their last product
(`row_order.py`). The parts between are the engine's functions. (No upstream issue is known; this
can go when the engine's `AutoEPMoELayer._forward` does both.) DeepEP sends and weighs rows by
itself: its layers stay as they are.

Split: experts. Communicated: tokens, and their weights.

Shape letters:  T tokens of this rank · D hidden · E experts · K experts per token
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

from hunyuan_train.parallel.row_order import (
    FromExperts,
    SumRows,
    TakeRows,
    ToExperts,
    TokenRows,
    order_by_expert,
)
from hunyuan_train.parallel.row_weights import ACTIVATION, register_activation, weighing
from hunyuan_train.parallel.token_exchange import Arrive, Depart, Exchange

FUSED = "fused_weighted_sum"  # of `combine_impl`


def take_over_layers(blocks: Iterable[nn.Module]) -> None:
    """Let layers of split experts run as here.

    Args:
        blocks: of the model, after the engine has split their experts, where it does.
    """
    register_activation()
    for block in blocks:
        if isinstance(block, AutoEPMoELayer) and is_engines_exchange(block):
            block.experts.activation = ACTIVATION
            block._forward = partial(run_layer, block)


def is_engines_exchange(layer: Any) -> bool:  # noqa: ANN401 the engine's
    """Whether a layer sends tokens by the engine's all-to-all, or needs not send any."""
    return layer.ep_size == 1 or bool(layer.comm_backend == COMM_BACKEND)


def run_layer(layer: Any, hidden_states: Tensor) -> Tensor:  # noqa: ANN401
    """Experts of a layer, routed and shared: [1, tokens, hidden], and so its result."""
    x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
    is_fused = layer.combine_impl == FUSED
    if is_fused:  # on no rank after others have begun to exchange
        autoep_fused_token_ops.assert_supported(x_TD, score_apply=layer.score_apply)
    scores_TK, experts_TK, counts_E = layer.router(x_TD, layer.expert_bias)
    is_async = layer.async_split_plan and layer.ep_size > 1
    pending = layer._start_async_split_plan(counts_E) if is_async else None
    with torch.no_grad():
        layer.tokens_per_expert.add_(counts_E)
    order_N = torch.argsort(experts_TK.flatten(), stable=True)
    of_tokens = TokenRows(order_N, layer.top_k, is_fused)
    # One name for rows on all their way: none are held longer than they are read.
    rows, weights = TakeRows.apply(x_TD, of_tokens), scores_TK.flatten().gather(0, order_N)
    plan = finish_plan(layer, pending, experts_TK, counts_E)
    exchange = Exchange(layer.ep_group, plan.input_splits, plan.output_splits)
    if layer.ep_size > 1:
        rows, weights = Depart.apply(exchange, rows, weights)
    shared = layer.shared_experts(hidden_states)
    if layer.ep_size > 1:
        rows, weights = Arrive.apply(exchange, rows, weights)
    of_experts, counts = order_by_expert(plan.local_counts_by_source, len(rows))
    if of_experts:
        rows, weights = ToExperts.apply(rows, weights, of_experts)
    with weighing(weights):
        rows = layer.experts(rows, counts)
    # Nothing behind this may save a tensor for its gradient.
    if of_experts:
        rows = FromExperts.apply(rows, of_experts)
    if layer.ep_size > 1:
        rows = auto_ep_layer._AllToAllV.apply(
            layer.ep_group, rows, plan.output_splits, plan.input_splits
        )
    return add_shared(SumRows.apply(rows, of_tokens).view_as(hidden_states), shared)


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


def add_shared(routed: Tensor, shared: Tensor) -> Tensor:
    """Both kinds of experts together: [1, tokens, hidden]."""
    return routed + shared
