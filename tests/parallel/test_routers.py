"""Balance loss, z-loss and expert load are those of one process, however experts are split."""

import pytest
import torch
from torch import Tensor

from hunyuan_train.model.router import balance_loss, z_loss
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_loss, plain_model, released_state
from tests.engines import kept_weights, my_share, router_terms, small_engine
from tests.ranks import run_ranks

BALANCE, Z = 0.3, 0.01
RATE = 0.05


def train_with_router_losses(expert_size: int) -> tuple[list[float], Tensor, dict]:
    engine = small_engine(stage=3, expert_size=expert_size, optimizer="sgd", max_grad_norm=0.0)
    terms = router_terms(engine, BALANCE, Z)
    losses = []
    for step in range(3):
        batches = my_share(global_batch(step, 2))
        result = train_step(engine, batches, learning_rate=RATE, routers=terms)
        losses.append(result.router_loss)
    return losses, terms.watch.take_load(), kept_weights(engine.module)


def train_plain() -> tuple[list[float], Tensor, dict[str, Tensor]]:
    """The same in one process: router logits caught by a hook, counts from the chosen experts."""
    model = plain_model()
    caught: list[tuple[int, Tensor, Tensor]] = []
    for index, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(
            lambda _, __, output, index=index: caught.append((index, output[0], output[2]))
        )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    total = torch.zeros(SHAPE.num_hidden_layers, SHAPE.num_experts, dtype=torch.int64)
    losses = []
    for step in range(3):
        caught.clear()
        batches = global_batch(step, 2)
        loss = plain_loss(model, batches)
        layers = range(SHAPE.num_hidden_layers)
        logits = [torch.cat([one for at, one, _ in caught if at == layer]) for layer in layers]
        chosen = [torch.cat([one for at, _, one in caught if at == layer]) for layer in layers]
        counts = torch.stack([torch.bincount(one.flatten(), minlength=16) for one in chosen])
        num_tokens = sum(len(batch.input_ids) for batch in batches)
        extra = BALANCE * balance_loss(logits, counts, num_tokens) + Z * z_loss(logits, num_tokens)
        (loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(extra.item())
        total += counts
    return losses, total, released_state(model)


@pytest.mark.parametrize("expert_size", [0, 2])
def test_router_losses_and_load_are_those_of_one_process(expert_size: int) -> None:
    expected_losses, expected_load, expected_weights = train_plain()
    ranks = run_ranks(train_with_router_losses, 2, expert_size)
    for losses, _, weights in ranks:
        assert losses == pytest.approx(expected_losses, abs=1e-6)
        for (name, start), values in weights.items():
            expected = expected_weights[name][start : start + len(values)]
            assert (values - expected).abs().max() < 1e-6, name
    assert torch.equal(sum(load for _, load, _ in ranks), expected_load)
