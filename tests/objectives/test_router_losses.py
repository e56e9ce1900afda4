"""What routers add to the loss, at the points that can be worked out by hand."""

import pytest
import torch

from hunyuan_train.objectives.router_losses import balance_loss, z_loss


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_collapsed() -> None:
    even = torch.zeros(12, 4)
    counts = torch.full((1, 4), 6)
    assert balance_loss([even], counts, 12).item() == pytest.approx(1.0)
    collapsed = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(12, 4)
    counts = torch.tensor([[12, 0, 0, 0]])
    assert balance_loss([collapsed], counts, 12).item() == pytest.approx(4.0)


def test_balance_loss_of_parts_adds_up_to_that_of_the_whole() -> None:
    logits = [torch.randn(20, 8, requires_grad=True) for _ in range(3)]
    counts = torch.randint(0, 30, (3, 8))
    whole = balance_loss(logits, counts, 20)
    parts = [
        balance_loss([layer[part] for layer in logits], counts, 20)
        for part in (slice(0, 7), slice(7, 20))
    ]
    assert torch.allclose(whole, sum(parts))
    whole_gradient = torch.autograd.grad(whole, logits)
    for ours, theirs in zip(torch.autograd.grad(sum(parts), logits), whole_gradient, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits = torch.log(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    expected = (torch.log(torch.tensor([2.0, 4.0])) ** 2).mean()
    assert torch.allclose(z_loss([logits, logits], 2), expected)
