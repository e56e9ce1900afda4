"""Rows weighed before experts' last product give what outputs weighed behind it give."""

import pytest
import torch
from deepspeed.moe.ep_experts import GroupedExperts
from torch import Tensor

from hunyuan_train.parallel.row_order import FromExperts, ToExperts, order_by_expert
from hunyuan_train.parallel.row_weights import ACTIVATION, register_activation, weighing

HIDDEN, WIDTH, EXPERTS = 24, 16, 3
ROWS = 17
# From two ranks and from one; an expert has none.
COUNTS = [
    torch.tensor(counts, dtype=torch.int32) for counts in ([[5, 0, 2], [1, 0, 9]], [[6, 0, 11]])
]


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Rows as they come from all ranks, their weights, and the gradient of their outputs."""
    generator = torch.Generator().manual_seed(0)
    rows, gradient = torch.randn(2, ROWS, HIDDEN, generator=generator)
    weights = torch.rand(ROWS, generator=generator)
    return rows.requires_grad_(), weights.requires_grad_(), gradient


def make_experts(**settings: object) -> GroupedExperts:
    torch.manual_seed(1)
    experts = GroupedExperts(HIDDEN, WIDTH, EXPERTS, **settings)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return experts


def weigh_inside(experts: GroupedExperts, counts: Tensor) -> list[Tensor]:
    """Outputs in the order of rows, and the gradients of all that they depend on."""
    rows, weights, gradient = make_inputs()
    experts.activation = ACTIVATION
    order, of_experts = order_by_expert(counts, ROWS)
    assert (order is None) == (len(counts) == 1)
    laid = ToExperts.apply(rows, weights, order) if order else (rows, weights)
    with weighing(laid[1]):
        outputs = experts(laid[0], of_experts)
    outputs = FromExperts.apply(outputs, order) if order else outputs
    outputs.backward(gradient)
    return [outputs.detach(), rows.grad, weights.grad, *(one.grad for one in experts.parameters())]


def weigh_behind(experts: GroupedExperts, counts: Tensor) -> list[Tensor]:
    """The same, one expert after the other, by the formula."""
    rows, weights, gradient = make_inputs()
    expert = torch.arange(EXPERTS).repeat(len(counts)).repeat_interleave(counts.flatten())
    w1, w2, w3 = (one[expert] for one in (experts.w1, experts.w2, experts.w3))
    gate, up = (torch.einsum("nd,nid->ni", rows, one) for one in (w1, w3))
    inner = torch.nn.functional.silu(gate) * up
    outputs = torch.einsum("ni,ndi->nd", inner, w2) * weights[:, None]
    outputs.backward(gradient)
    return [outputs.detach(), rows.grad, weights.grad, *(one.grad for one in experts.parameters())]


@pytest.mark.parametrize("counts", COUNTS, ids=["two ranks", "one rank"])
@pytest.mark.parametrize(
    "settings", [{}, {"gate_up_impl": "fused"}, {"use_grouped_mm": False}], ids=str
)
def test_every_way_of_the_engine_weighs_each_row_by_its_own_weight(
    settings: dict, counts: Tensor
) -> None:
    register_activation()
    expected = weigh_behind(make_experts(), counts)
    for got, wanted in zip(weigh_inside(make_experts(**settings), counts), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_rows_without_weights_are_an_error() -> None:
    register_activation()
    experts = make_experts()
    experts.activation = ACTIVATION
    with pytest.raises(AssertionError, match="come with their weights"):
        experts(torch.zeros(8, HIDDEN), torch.tensor([8, 0, 0], dtype=torch.int32))
