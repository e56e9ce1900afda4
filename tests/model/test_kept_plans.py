"""A layer that runs twice, or in chunks three times, makes its plans once."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hunyuan_train.model.expert_microbatches import run_chunks
from hunyuan_train.model.kept_plans import keep_plans, plan_once

TOKENS, HIDDEN = 10, 4


class Experts:
    """Stands for a layer that must ask how many rows come before it computes: double or nothing."""

    def __init__(self) -> None:
        self.num_runs, self.plans = 0, []
        self.is_fickle = False

    def __call__(self, hidden_states: Tensor) -> Tensor:
        self.num_runs += 1
        counts = torch.tensor([hidden_states.shape[1], self.num_runs if self.is_fickle else 0])
        num_rows = plan_once(counts, lambda: self.make_plan(hidden_states))
        assert num_rows == hidden_states.shape[1]  # each chunk has its own
        return (hidden_states * 2).square()

    def make_plan(self, hidden_states: Tensor) -> int:
        self.plans.append(hidden_states.shape[1])
        return hidden_states.shape[1]


def gradient(layer, *, is_checkpointed: bool) -> Tensor:
    hidden = torch.arange(TOKENS * HIDDEN, dtype=torch.float32).view(1, TOKENS, HIDDEN)
    hidden.requires_grad_()
    run = partial(keep_plans, partial(checkpoint, use_reentrant=False), layer)
    output = run(hidden) if is_checkpointed else layer(hidden)
    output.sin().sum().backward()
    return hidden.grad


def test_the_second_run_takes_the_plan_of_the_first():
    experts = Experts()
    assert torch.equal(
        gradient(experts, is_checkpointed=True), gradient(Experts(), is_checkpointed=False)
    )
    assert (experts.num_runs, experts.plans) == (2, [TOKENS])
    gradient(experts, is_checkpointed=True)
    assert (experts.num_runs, experts.plans) == (4, [TOKENS] * 2)


def test_each_chunk_has_a_plan_of_its_own_however_often_it_runs():
    experts = Experts()
    found = gradient(partial(run_chunks, experts, 4), is_checkpointed=True)
    assert torch.equal(found, gradient(Experts(), is_checkpointed=False))
    assert experts.num_runs > 8
    assert experts.plans == [2, 3, 2, 3]


def test_nothing_is_kept_where_nothing_runs_twice():
    experts = Experts()
    gradient(experts, is_checkpointed=False)
    with torch.no_grad():
        run_chunks(experts, 4, torch.zeros(1, TOKENS, HIDDEN))
    assert experts.plans == [TOKENS, 2, 3, 2, 3]


def test_other_experts_in_the_second_run_are_an_error():
    experts = Experts()
    experts.is_fickle = True
    with pytest.raises(RuntimeError, match="computed again chose other experts"):
        gradient(experts, is_checkpointed=True)
