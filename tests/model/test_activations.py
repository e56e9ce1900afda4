"""Recomputation: what runs twice, what is kept, and that routers choose the same both times."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import HunYuanMoEV1ForCausalLM

from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.model import activations
from hunyuan_train.model.activations import recompute_layers
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.build import build_model
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_model
from tests.engines import small_engine
from tests.ranks import run_ranks

LENGTHS = [9, 14]


class CountOperators(TorchDispatchMode):
    """Counts what really runs; what is kept does not come here again."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.counts[operator.name()] += 1
        return operator(*arguments, **(options or {}))


def packed_model(mode: str, *, is_offloaded: bool = False) -> HunYuanMoEV1ForCausalLM:
    model = build_model(SHAPE, attention=PER_DOCUMENT, attention_dropout=0.0).train()
    model.load_state_dict(plain_model().state_dict())
    if mode != "off":
        recompute_layers(model, is_selective=mode == "selective", is_offloaded=is_offloaded)
    return model


def forward(model: HunYuanMoEV1ForCausalLM) -> Tensor:
    ids = torch.arange(sum(LENGTHS)) * 7 % SHAPE.vocab_size
    return model(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        document_lengths=LENGTHS,
        use_cache=False,
    ).logits


def gradients(model: HunYuanMoEV1ForCausalLM) -> dict[str, Tensor]:
    forward(model).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("is_offloaded", [False, True])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputation_changes_no_gradient_by_a_bit(mode: str, is_offloaded: bool) -> None:
    expected = gradients(packed_model("off"))
    for name, gradient in gradients(packed_model(mode, is_offloaded=is_offloaded)).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize(("mode", "num_runs"), [("off", 1), ("selective", 1), ("full", 2)])
def test_only_full_recomputation_runs_attention_twice(mode: str, num_runs: int) -> None:
    model = packed_model(mode)
    with CountOperators() as operators:
        forward(model).square().mean().backward()
    kernels = {name: n for name, n in operators.counts.items() if "_scaled_dot_product" in name}
    attention = sum(n for name, n in kernels.items() if "backward" not in name)
    assert attention == num_runs * SHAPE.num_hidden_layers * len(LENGTHS)
    num_experts_runs = operators.counts["aten::_grouped_mm"]
    assert num_experts_runs > 0


def test_selective_recomputation_runs_fewer_products_than_full() -> None:
    counts = {}
    for mode in ("off", "selective", "full"):
        model = packed_model(mode)
        with CountOperators() as operators:
            forward(model).square().mean().backward()
        counts[mode] = operators.counts["aten::mm"]
    assert counts["off"] == counts["selective"] < counts["full"]


def losses_after_an_evaluation(is_selective: bool) -> list[float]:
    engine = small_engine(stage=3, expert_size=1)
    recompute_layers(engine.module, is_selective=is_selective, is_offloaded=False)
    batches = global_batch(0, 1)
    evaluate(engine, SFT, batches)
    return [train_step(engine, SFT, batches, learning_rate=1e-3).loss for _ in range(3)]


def test_weights_may_be_gathered_and_freed_at_other_places_in_the_second_run() -> None:
    [full], [selective] = (run_ranks(losses_after_an_evaluation, 1, one) for one in (False, True))
    assert selective == full


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_routers_choose_the_same_experts_again(mode: str) -> None:
    model = packed_model(mode)
    chosen: dict[int, list[Tensor]] = {}
    for layer, module in enumerate(model.model.layers):
        module.mlp.gate.register_forward_hook(
            lambda _, __, output, layer=layer: chosen.setdefault(layer, []).append(output[2])
        )
    forward(model).square().mean().backward()
    assert len(chosen) == SHAPE.num_hidden_layers
    for first, again in chosen.values():
        assert torch.equal(first, again)


@pytest.mark.parametrize(("is_offloaded", "is_saved"), [(True, True), (False, False)])
def test_inputs_of_layers_go_to_host_memory_on_demand(
    is_offloaded: bool, is_saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Tensor] = []

    class Watch(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            assert not pin_memory  # there is no GPU to copy to from pinned memory
            super().__init__(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor)

    monkeypatch.setattr(activations, "save_on_cpu", Watch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    forward(packed_model("full", is_offloaded=is_offloaded)).sum().backward()
    large = [tensor for tensor in saved if tensor.numel() == sum(LENGTHS) * SHAPE.hidden_size]
    assert len(large) == (SHAPE.num_hidden_layers if is_saved else 0)
    assert len(saved) <= len(large) + SHAPE.num_hidden_layers  # torch's own empty one beside each


@pytest.mark.gpu
def test_on_a_gpu_offloading_frees_the_inputs() -> None:
    held = {}
    for is_offloaded in (False, True):
        model = packed_model("full", is_offloaded=is_offloaded).cuda().bfloat16()
        ids = torch.zeros(1, 4096, dtype=torch.int64, device="cuda")
        before = torch.cuda.memory_allocated()
        output = model(input_ids=ids, document_lengths=[4096], use_cache=False, logits_to_keep=1)
        held[is_offloaded] = torch.cuda.memory_allocated() - before
        output.logits.sum().backward()
        del output
    inputs = SHAPE.num_hidden_layers * 4096 * SHAPE.hidden_size * 2
    assert held[False] - held[True] >= 0.9 * inputs
