"""What a watch of routers sees, and what routers compute with."""

import torch

from hunyuan_train.model.router import Float32Linear, RouterWatch


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
