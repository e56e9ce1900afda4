"""What a watch of routers sees, and what routers compute with."""

import torch

from hunyuan_train.model.router import Float32Linear, RouterWatch
from hunyuan_train.objectives.router_losses import RouterTerms


def test_watch_counts_only_what_it_records() -> None:
    watch = RouterWatch(num_layers=2, num_experts=3, device=torch.device("cpu"))
    watch.see_choice(0, torch.tensor([9, 9, 9]))
    with watch.recording():
        watch.see_choice(0, torch.tensor([1, 2, 3]))
        watch.see_choice(1, torch.tensor([0, 0, 6]))
    watch.see_choice(1, torch.tensor([9, 9, 9]))  # as a recomputation would
    with watch.recording():
        watch.see_choice(0, torch.tensor([1, 0, 0]))
    assert watch.take_load().tolist() == [[2, 2, 3], [0, 0, 6]]
    assert watch.take_load().sum() == 0


def test_watch_holds_logits_until_they_are_taken() -> None:
    watch = RouterWatch(num_layers=1, num_experts=3, device=torch.device("cpu"))
    for coefficient in (0.0, 0.1):
        terms = RouterTerms(watch, top_k=1, z_coefficient=coefficient)
        with watch.recording():
            watch.see_choice(0, torch.tensor([0, 0, 2]))
            for _ in range(2):
                watch.see_logits(0, torch.ones(1, 3))
        expected = coefficient * torch.logsumexp(torch.ones(3), 0) ** 2
        torch.testing.assert_close(terms.loss(), expected)
        assert watch.take_logits() == [[]]


def test_pinned_router_computes_with_its_exact_weights_and_trains_the_rounded_ones() -> None:
    torch.manual_seed(0)
    exact = torch.randn(4, 16)
    router = torch.nn.Linear(16, 4, bias=False).bfloat16()
    with torch.no_grad():
        router.weight.copy_(exact)
    assert not torch.equal(router.weight.float(), exact)
    Float32Linear.pin(router, exact)
    hidden = torch.randn(5, 16, dtype=torch.bfloat16)
    logits = router(hidden)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.nn.functional.linear(hidden.float(), exact))
    logits.sum().backward()
    assert torch.equal(router.weight.grad, hidden.float().sum(0).expand(4, 16).bfloat16())
