"""Balance loss, z-loss and expert load are those of one process, however experts are split."""

import pytest
import torch
from torch import Tensor

from hunyuan_train.model.loss import token_losses
from hunyuan_train.objectives.router_losses import balance_loss, z_loss
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.routers import count_choices
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_loss, plain_model, released_state
from tests.engines import kept_weights, my_share, router_terms, small_engine
from tests.ranks import run_together

BALANCE, Z = 0.3, 0.01
RATE = 0.05


def test_choices_are_counted_for_experts_without_a_token_too() -> None:
    chosen_TK = torch.tensor([[0, 2], [2, 5], [2, 0]])
    counts_E = count_choices(chosen_TK, 7)
    assert counts_E.tolist() == [2, 0, 3, 0, 0, 1, 0]
    assert torch.equal(counts_E, torch.bincount(chosen_TK.flatten(), minlength=7))


def train_with_router_losses(expert_size: int) -> tuple[list[float], Tensor, dict]:
    engine = small_engine(stage=3, expert_size=expert_size, optimizer="sgd", max_grad_norm=0.0)
    terms = router_terms(engine, BALANCE, Z)
    losses = []
    for step in range(3):
        batches = my_share(global_batch(step, 2))
        result = train_step(engine, SFT, batches, learning_rate=RATE, routers=terms)
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


SPLITS = ((0,), (2,))  # ranks that share one set of experts; 0: no layer for them


@pytest.mark.parametrize("split", SPLITS)
def test_router_losses_and_load_are_those_of_one_process(split: tuple[int]) -> None:
    expected_losses, expected_load, expected_weights = train_plain()
    ranks = run_together(train_with_router_losses, 2, SPLITS)[split]
    for losses, _, weights in ranks:
        assert losses == pytest.approx(expected_losses, abs=1e-6)
        for (name, start), values in weights.items():
            expected = expected_weights[name][start : start + len(values)]
            assert (values - expected).abs().max() < 1e-6, name
    assert torch.equal(sum(load for _, load, _ in ranks), expected_load)


def vendor_routing(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """`topkgating` of the vendor's modeling_hunyuan.py, without what drops tokens at capacity.

    Weights of the chosen experts: their probabilities among all, over the sum of the chosen ones.
    """
    gates_TE = torch.softmax(logits_TE.float(), dim=1)
    _, experts_TK = torch.topk(gates_TE, top_k)
    chosen_TKE = torch.nn.functional.one_hot(experts_TK, logits_TE.shape[1]).float()
    sums_T = (chosen_TKE @ gates_TE.unsqueeze(-1)).sum(dim=1)
    probabilities_TE = gates_TE / sums_T.clamp(min=torch.finfo(gates_TE.dtype).eps)
    return probabilities_TE.gather(1, experts_TK), experts_TK


def route(expert_size: int, is_bf16: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What each layer's router is given, and the weights and experts that it chooses."""
    engine = small_engine(stage=3, expert_size=expert_size, is_bf16=is_bf16)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(_: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        weights, experts = output[:2] if expert_size else output[1:3]
        seen.append((inputs[0].flatten(0, -2).clone(), weights.clone(), experts.clone()))

    for layer in engine.module.model.layers:
        (layer.mlp.router if expert_size else layer.mlp.gate).register_forward_hook(see)
    with torch.no_grad():
        token_losses(engine, my_share(global_batch(0, 2))[0])
    return seen


WAYS = ((0, False), (2, False), (2, True), (0, True))


@pytest.mark.parametrize(("expert_size", "is_bf16"), WAYS)
def test_tokens_are_routed_by_the_vendors_formula_without_its_capacity(
    expert_size: int, is_bf16: bool
) -> None:
    released = plain_model().model.layers
    for rank in run_together(route, 2, WAYS)[expert_size, is_bf16]:
        for layer, (hidden_TD, weights_TK, experts_TK) in zip(released, rank, strict=True):
            assert hidden_TD.dtype == (torch.bfloat16 if is_bf16 else torch.float32)
            logits_TE = torch.nn.functional.linear(hidden_TD.float(), layer.mlp.gate.wg.weight)
            expected_TK, expected_ids_TK = vendor_routing(logits_TE, SHAPE.moe_topk)
            assert weights_TK.dtype == torch.float32
            weights_TE = torch.zeros_like(logits_TE).scatter(1, experts_TK, weights_TK)
            expected_TE = torch.zeros_like(logits_TE).scatter(1, expected_ids_TK, expected_TK)
            assert torch.equal(weights_TE > 0, expected_TE > 0), "other experts were chosen"
            assert (weights_TE - expected_TE).abs().max() < 1e-6
