"""Layers of split experts give what the engine's give, and compute and send less.

Tokens travel while the shared expert is computed. A layer's second run ends before its experts'
last product.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.module_inject import auto_ep_layer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan_train.config.schema import LoraConfig, ModelConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.expert import moe_blocks
from hunyuan_train.parallel.token_exchange import Exchange
from hunyuan_train.selftest import samples
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch
from tests.engines import kept_weights, my_share, small_engine
from tests.ranks import run_together

NUM_STEPS, WORLD_SIZE = 2, 2
HY_V3 = replace(samples.HY_V3, vocab_size=SHAPE.vocab_size)
ON_ALL = LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules="all")
OURS = "hunyuan_train.parallel.assemble.take_over_layers"
# Of float32, where rows are weighed before a product and not behind it; in bfloat16 both round.
CLOSE, ROUNDED = 2e-6, 2e-2

FORWARD = ["rows set out", "shared expert", "rows are there"]
BACKWARD = ["gradients set out", "shared expert's gradient", "gradients are there"]


@dataclass(frozen=True)
class Case:
    """A way to train, and how often a layer runs in a micro-step."""

    name: str
    num_forwards: int = 2
    num_backwards: int = 1
    is_recomputed: bool | str = True
    moe_chunks: int = 1
    lora: LoraConfig | None = None
    expert_weights: str = "bf16"
    shape: ModelShape = SHAPE
    is_bf16: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("full"),
    # Each chunk: forward, and again for its own backward; all but the last once more between.
    Case("experts in chunks", num_forwards=3 + 2 + 3, num_backwards=3, moe_chunks=3),
)
SLOW = (
    Case("bfloat16", is_bf16=True),
    Case("nothing recomputed", num_forwards=1, is_recomputed=False),
    Case("selective", is_recomputed="selective"),
    Case("adapters", lora=ON_ALL),
    Case("adapters in chunks", 3 + 2 + 3, 3, moe_chunks=3, lora=ON_ALL),
    Case("experts in int4", lora=ON_ALL, expert_weights="int4"),
    Case("experts in fp8, adapters on attention", lora=LoraConfig(use_lora=True),
         expert_weights="fp8"),
    Case("hy_v3", shape=HY_V3),
    Case("hy_v3, adapters", shape=HY_V3, lora=ON_ALL),
)  # fmt: skip


Trained = tuple[list[tuple[float, float]], dict[tuple[str, int], Tensor], list[str], int]


def train(case: Case, is_engines_own: bool) -> Trained:
    """Losses and norms, this rank's weights, what happened in which order, and layers."""
    with pytest.MonkeyPatch.context() as patch:
        if is_engines_own:
            patch.setattr(OURS, lambda _: None)
        engine = small_engine(
            stage=3,
            expert_size=WORLD_SIZE,
            optimizer="sgd",
            lora=case.lora,
            model=ModelConfig(expert_weights=case.expert_weights),
            moe_chunks=case.moe_chunks,
            is_recomputed=case.is_recomputed,
            shape=case.shape,
            is_bf16=case.is_bf16,
        )
        blocks = moe_blocks(engine.module)
        events: list[str] = []
        steps = []
        watch(patch, blocks, events)
        for step in range(NUM_STEPS):
            events.clear()
            mine = my_share(global_batch(step, WORLD_SIZE))
            result = train_step(engine, SFT, mine, learning_rate=0.05)
            steps.append((result.loss, result.grad_norm))
    return steps, kept_weights(engine.module), events, len(blocks)


def watch(patch: pytest.MonkeyPatch, blocks: list[Any], events: list[str]) -> None:
    """Take down when exchanges begin and end, and when shared experts are computed."""

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(exchange: Exchange, *arguments: Any, **options: Any) -> Any:
            what = "gradients" if torch._C._current_autograd_node() and is_back() else "rows"
            events.append(f"{what} {name}")
            return method(exchange, *arguments, **options)

        return run

    def is_back() -> bool:
        name = torch._C._current_autograd_node().name()
        return name in ("DepartBackward", "ArriveBackward")

    patch.setattr(Exchange, "begin", noting("set out", Exchange.begin))
    patch.setattr(Exchange, "end", noting("are there", Exchange.end))

    def note_shared(_: Any, __: Any, output: Tensor) -> None:
        events.append("shared expert")
        if output.requires_grad:  # of the first run: that of a second one has no gradient
            output.register_hook(lambda _: events.append("shared expert's gradient"))

    for block in blocks:
        block.shared_experts.register_forward_hook(note_shared)


def pairs_of(cases: tuple[Case, ...]) -> tuple[tuple[Case, bool], ...]:
    return tuple((case, is_own) for case in cases for is_own in (True, False))


def check(case: Case, cases: tuple[Case, ...]) -> None:
    found = run_together(train, WORLD_SIZE, pairs_of(cases))
    for plain, ours in zip(found[case, True], found[case, False], strict=True):
        limit = ROUNDED if case.is_bf16 else CLOSE
        assert np.array(ours[0]) == pytest.approx(np.array(plain[0]), rel=limit)
        assert ours[1].keys() == plain[1].keys()
        for name, values in plain[1].items():
            distance = (ours[1][name].float() - values.float()).norm() / values.float().norm()
            assert distance <= limit, name
        assert not any("set out" in event for event in plain[2])
        check_order(ours[2], ours[3], case)


def check_order(events: list[str], num_layers: int, case: Case) -> None:
    """All that happened is exchanges with a shared expert inside, as many as runs of layers."""
    runs = [events[start : start + 3] for start in range(0, len(events), 3)]
    assert all(run in (FORWARD, BACKWARD) for run in runs)
    assert runs.count(FORWARD) == num_layers * case.num_forwards
    assert runs.count(BACKWARD) == num_layers * case.num_backwards
    # Forward passes come first, and each run of a layer again before its gradients.
    num_first = num_layers * case.moe_chunks
    assert runs[:num_first] == [FORWARD] * num_first
    assert runs[-1] == BACKWARD


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_shared_expert_is_computed_while_rows_travel_and_results_are_the_same(case: Case):
    check(case, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_so_it_is_however_a_model_is_trained(case: Case):
    check(case, SLOW)


@dataclass
class Products(TorchDispatchMode):
    """Counts grouped products, and values that are sent to other ranks."""

    number: int = 0

    def __torch_dispatch__(
        self, operator: Any, _: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.number += operator is torch.ops.aten._grouped_mm.default
        return operator(*arguments, **(options or {}))

    def __post_init__(self) -> None:
        super().__init__()


def count_products(case: Case) -> tuple[int, int, int]:
    """Grouped products of a micro-step, exchanges back of rows, forward passes and layers."""
    engine = small_engine(
        stage=3, expert_size=WORLD_SIZE, lora=case.lora, moe_chunks=case.moe_chunks
    )
    num_back = 0
    send_back = auto_ep_layer._AllToAllV.forward

    def note(*arguments: Any) -> Tensor:
        nonlocal num_back
        num_back += 1
        return send_back(*arguments)

    [batch] = my_share(global_batch(0, WORLD_SIZE))
    with pytest.MonkeyPatch.context() as patch, Products() as products:
        patch.setattr(auto_ep_layer._AllToAllV, "forward", note)
        train_step(engine, SFT, [batch], learning_rate=0.05)
    return products.number, num_back, len(moe_blocks(engine.module))


# By layer: products forward, again without the last one, and of gradients of rows and weights.
COUNTED = {
    CASES[0]: (3 + 2 + 6, 1),
    CASES[1]: (3 * 3 + 2 * 3 + 3 * 2 + 3 * 6, 3 + 2),
    # Adapters have four products, of which only what comes last is spared, with the base's last;
    # the base has no gradients of weights.
    Case("adapters", lora=ON_ALL): (3 + 4 + 2 + 4 + 3 + 8, 1),
}


def test_a_second_run_ends_before_the_last_product_and_sends_nothing_back() -> None:
    found = run_together(count_products, WORLD_SIZE, tuple((case,) for case in COUNTED))
    for case, (num_products, num_back) in COUNTED.items():
        for counted, sent, num_layers in found[(case,)]:
            assert (counted, sent) == (num_layers * num_products, num_layers * num_back), case
