"""Optimizers over the engine's parameters: their groups, how they are made, their states."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hunyuan_train.checkpoint.state import collect_content
from hunyuan_train.config.schema import OptimizerConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.extension import CPU_ADAM
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.blockwise_states import BlockwiseState, block_slices
from hunyuan_train.optim.lean import LeanAdamW, update_blocks
from hunyuan_train.optim.lean_memory import LEAN_BLOCK
from hunyuan_train.optim.records import MASTER, OPTIMIZERS, find_optimizer
from hunyuan_train.parallel.optimizer import (
    FACTORIES,
    compile_or_warn,
    decay_groups,
    engine_optimizer,
    hold_routers,
    optimizer_factory,
    prepare_optimizer_states,
    set_learning_rate,
    share_of_weights_moved,
)
from hunyuan_train.parallel.zero import flat_masters, optimizer_step_count, state_kinds
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss, plain_model
from tests.engines import my_share, small_engine
from tests.ranks import prepare, run_ranks

CPU = torch.device("cpu")
ROUTER = ".mlp.gate.wg."


def test_each_record_has_its_factory_and_no_factory_is_without_one() -> None:
    assert FACTORIES.keys() == OPTIMIZERS.keys()


def test_an_unknown_optimizer_is_an_error_and_not_adamw() -> None:
    with pytest.raises(ConfigError, match="optimizer is adamax"):
        optimizer_factory(OptimizerConfig(optimizer="adamax"), seed=0)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = plain_model()
    model.model.embed_tokens.weight.requires_grad_(requires_grad=False)
    decays = {
        id(parameter): group["weight_decay"]
        for group in decay_groups(model, 0.1)
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        expected = 0.1 if parameter.ndim > 1 else 0.0
        assert decays.pop(id(parameter), None) == (expected if parameter.requires_grad else None), (
            name
        )
    assert not decays
    assert {parameter.ndim for parameter in model.parameters()} > {1, 2}


def test_held_routers_stay_as_they_are_until_they_are_let_go() -> None:
    model = plain_model()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1.0)

    def moved() -> dict[bool, set[bool]]:
        """Of routers, and of all others: whether a step changed them."""
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        plain_loss(model, global_batch(0, 1)).backward()
        set_learning_rate(optimizer, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        seen: dict[bool, set[bool]] = {True: set(), False: set()}
        for name, one in model.named_parameters():
            seen[ROUTER in name].add(not torch.equal(one, before[name]))
        return seen

    assert moved() == {True: {True}, False: {True}}
    hold_routers(optimizer)
    assert moved() == {True: {False}, False: {True}}
    hold_routers(optimizer, is_held=False)
    assert moved() == {True: {True}, False: {True}}


class Kept(NamedTuple):
    """What an engine's optimizer keeps."""

    record: str
    kinds: list[str]  # after a step
    by_step: list[dict[str, Any]]  # the form of each flat tensor's states, made by a first step
    prepared: list[dict[str, Any]]  # the same, made for a resumed run
    counts: tuple[int, int]  # of updates, in both cases
    kinds_afresh: list[str]  # after going back to before the first step
    saved_afresh: list[str]  # what a checkpoint would hold then
    share_moved: float | None


def form_of(value: object) -> object:
    """All of a state but its numbers."""
    if isinstance(value, BlockwiseState):
        return [form_of(value.codes), form_of(value.scales), value.num_elements]
    if isinstance(value, Tensor):
        return [value.shape, value.dtype, value.device]
    return type(value)


def states_of_each_optimizer() -> dict[str, Kept]:
    """One engine after the other, on one rank."""
    found = {}
    for name, record in OPTIMIZERS.items():
        engine = small_engine(stage=3, expert_size=0, optimizer=name, is_bf16=record.shares_masters)
        optimizer = engine.optimizer.optimizer

        def forms(engine: Any = engine, optimizer: Any = optimizer) -> list[dict[str, Any]]:
            return [
                {kind: form_of(value) for kind, value in optimizer.state[flat].items()}
                for flat in flat_masters(engine)
            ]

        train_step(engine, SFT, my_share(global_batch(0, 1)), learning_rate=1e-3)
        kinds, by_step, count = state_kinds(engine), forms(), optimizer_step_count(engine)
        prepare_optimizer_states(engine, count)
        prepared, counts = forms(), (count, optimizer_step_count(engine))
        prepare_optimizer_states(engine, 0)
        found[name] = Kept(
            engine_optimizer(engine).name,
            kinds,
            by_step,
            prepared,
            counts,
            state_kinds(engine),
            collect_content(engine, None).kinds,
            share_of_weights_moved(engine),
        )
    return found


@pytest.fixture(scope="module")
def states() -> dict[str, Kept]:
    prepare(CPU_ADAM)  # which would be compiled in the rank, and take longer than it may
    return run_ranks(states_of_each_optimizer, 1)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_engine_keeps_the_states_that_the_record_names(
    states: dict[str, Kept], name: str
) -> None:
    assert states[name].record == name
    assert states[name].kinds == [MASTER, *sorted(find_optimizer(name).states)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_prepared_for_a_resumed_run_are_like_those_of_a_step(
    states: dict[str, Kept], name: str
) -> None:
    kept = states[name]
    assert kept.prepared == kept.by_step
    assert kept.counts[0] == kept.counts[1] == (1 if find_optimizer(name).states else 0)
    # Lean has its states from the start, made in one piece; nothing of them is saved before a step.
    early = sorted(find_optimizer(name).states) if find_optimizer(name).shares_masters else []
    assert kept.kinds_afresh == [MASTER, *early]
    assert kept.saved_afresh == [MASTER]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_share_of_weights_moved_is_counted_where_masters_are_shared(
    states: dict[str, Kept], name: str
) -> None:
    share = states[name].share_moved
    assert (share is not None and 0 < share < 1) == find_optimizer(name).shares_masters


def lean_optimizer() -> LeanAdamW:
    group = {"params": [nn.Parameter(torch.ones(100).bfloat16())]}
    return LeanAdamW([group], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)


def update_by(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> LeanAdamW:
    """An optimizer that was offered a kernel."""
    module = ModuleType("lean_kernel")
    module.update_flat = kernel
    monkeypatch.setitem(sys.modules, "hunyuan_train.optim.lean_kernel", module)
    optimizer = lean_optimizer()
    compile_or_warn(optimizer, CPU)
    return optimizer


def test_what_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def miscompiled(flat: Tensor, gradients: Tensor, *_: object) -> Tensor:
        moved = (flat.sub_(gradients) != 0).sum()
        return moved.long()

    assert update_by(miscompiled, monkeypatch).update_flat is None
    assert "of the weights another value" in caplog.text


def test_what_computes_the_same_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(
        flat: Tensor,
        gradients: Tensor,
        moments: list[BlockwiseState],
        seed: tuple[Tensor, Tensor],
        numbers: Tensor,
    ) -> Tensor:
        moved = torch.zeros((), dtype=torch.int64)
        for first, rows, changes in block_slices(flat, gradients):
            blocks = [one.blocks(first, rows.shape) for one in moments]
            start = (seed[0] + first * LEAN_BLOCK).int(), seed[1]
            moved += update_blocks(rows, changes, blocks, start, numbers)
        return moved

    optimizer = update_by(whole, monkeypatch)
    assert optimizer.update_flat is whole
    [parameter] = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(100).bfloat16()
    optimizer.step()
    assert optimizer.take_moved()[1] == 100


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = lean_optimizer()
    compile_or_warn(optimizer, CPU)
    assert optimizer.update_flat is None
    assert "stays uncompiled and takes many times as long" in caplog.text
    assert "No module named 'triton'" in caplog.text
