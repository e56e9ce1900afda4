"""Comparing finds what is missing and what is no number."""

import numpy as np
import pytest

from hunyuan_train.selftest.compare import Errors, compare
from hunyuan_train.selftest.parity_cases import TOLERANCE
from hunyuan_train.selftest.record import Record


def record(*, start: int = 0, stop: int = 4, scale: float = 1.0, norm: float = 2.0) -> Record:
    def part(values: list[float]) -> dict:
        return {("w", start): scale * np.array(values, np.float64)[start:stop]}

    return Record(
        start=part([0.0, 0.0, 0.0, 0.0]),
        numbers=[{"loss": 3.0 * scale}],
        grad_norms=[norm],
        gradients=[part([1.0, -2.0, 0.5, 0.0])],
        end=part([-0.1, 0.2, -0.05, 0.0]),
    )


def test_parts_of_ranks_make_the_whole() -> None:
    halves = [record(stop=2), record(start=2)]
    assert compare(record(), halves, max_grad_norm=1.0) == Errors(0.0, 0.0, 0.0, 0.0)


def test_errors_are_relative() -> None:
    errors = compare(record(), [record(scale=1.01, norm=2.2)], max_grad_norm=1.0)
    assert errors.loss == pytest.approx(0.01)
    assert errors.gradients == pytest.approx(0.01)
    assert errors.weights == pytest.approx(0.01)
    assert errors.clip == pytest.approx(1 - 2 / 2.2, rel=1e-3)
    assert errors.over(TOLERANCE) == ["loss", "gradients", "clip", "weights"]


def test_a_part_that_no_rank_keeps_is_refused() -> None:
    with pytest.raises(ValueError, match="no rank keeps all of 1 tensors, such as w"):
        compare(record(), [record(stop=3)], max_grad_norm=1.0)


def test_a_tensor_that_the_plain_model_lacks_is_refused() -> None:
    other = record()
    other.end = {**other.end, ("v", 0): np.ones(1)}
    with pytest.raises(ValueError, match="a rank has v"):
        compare(record(), [other], max_grad_norm=1.0)


def test_no_number_is_out_of_tolerance() -> None:
    errors = compare(record(), [record(scale=float("nan"))], max_grad_norm=1.0)
    assert errors.over(TOLERANCE) == ["loss", "gradients", "weights"]


def test_a_share_that_jumps_where_bfloat16_rounds_is_left_out_there_alone() -> None:
    expected, found = record(), record()
    expected.numbers, found.numbers = ([{"rewards/accuracies": one}] for one in (1.0, 0.0))
    assert compare(expected, [found], max_grad_norm=1.0).loss == 1.0
    assert compare(expected, [found], max_grad_norm=1.0, is_bf16=True).loss == 0.0
