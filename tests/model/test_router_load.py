"""Statistics of expert load against values computed by hand."""

import math

import pytest
import torch

from hunyuan_train.model.router_load import describe_load, divergence, to_shares


def test_entropy_is_one_where_all_get_as_much_and_zero_where_one_gets_all() -> None:
    shape = describe_load(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert shape.entropy.tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_violation_is_what_the_busiest_expert_gets_beyond_an_equal_share() -> None:
    shape = describe_load(torch.tensor([[5, 5, 5, 5], [14, 2, 2, 2]]))
    assert shape.violation.tolist() == pytest.approx([0.0, 1.8])


def test_dead_experts_get_less_than_a_hundredth_of_an_equal_share() -> None:
    shape = describe_load(torch.tensor([[1000, 1000, 10, 0], [500, 500, 500, 500]]))
    assert shape.is_dead.tolist() == [[False, False, False, True], [False] * 4]
    assert shape.num_dead == 1


def test_divergence_is_in_bits() -> None:
    same = torch.tensor([[3, 1]])
    assert divergence(same, 7 * same).item() == pytest.approx(0.0)
    assert divergence(torch.tensor([[1, 0]]), torch.tensor([[0, 9]])).item() == pytest.approx(1.0)
    # shares (1, 0) and (1/2, 1/2): the entropy of (3/4, 1/4), less half a bit
    middle = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    half = divergence(torch.tensor([[4, 0]]), torch.tensor([[2, 2]])).item()
    assert half == pytest.approx(middle - 0.5)


def test_a_layer_that_saw_nothing_counts_as_balanced() -> None:
    assert to_shares(torch.zeros(1, 4)).tolist() == [[0.25] * 4]
