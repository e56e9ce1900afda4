"""Tokens travel while the shared expert is computed; results are those of the engine's layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

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
OURS = "hunyuan_train.parallel.assemble.overlap_exchanges"

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

    def noting(name: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(exchange: Exchange, *arguments: Any, **options: Any) -> Tensor:
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
        assert ours[0] == plain[0]
        assert ours[1].keys() == plain[1].keys()
        for name, values in plain[1].items():
            assert torch.equal(ours[1][name], values), name
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
def test_the_shared_expert_is_computed_while_rows_travel_and_nothing_else_changes(case: Case):
    check(case, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_so_it_is_however_a_model_is_trained(case: Case):
    check(case, SLOW)
