"""The steps of the self-test hold the awkward cases that it claims."""

import numpy as np
import pytest

from hunyuan_train.selftest.parity_cases import list_cases
from hunyuan_train.selftest.samples import SHAPE, lay_batches, make_steps


@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
@pytest.mark.parametrize("packing", [True, False])
def test_ranks_get_as_many_batches_and_the_awkward_ones(num_processes: int, packing: bool) -> None:
    [case, *_] = list_cases(num_processes, num_gpus=0)
    uneven, unlabelled, short, _ = (
        lay_batches(step, packing=packing) for step in make_steps(case.num_batches)
    )
    for batches in (uneven, unlabelled, short):
        assert len(batches) % num_processes == 0
    half = len(uneven) // 2
    tokens = [
        sum(len(batch.input_ids) for batch in part) for part in (uneven[:half], uneven[half:])
    ]
    assert tokens[0] > 5 * tokens[1]
    assert all((batch.labels < 0).all() for batch in unlabelled[half:])
    assert any((batch.labels >= 0).any() for batch in unlabelled[:half])
    is_filler = [(batch.sample_ids == -1).all() for batch in short]
    assert is_filler == [False, *[True] * (len(short) - 1)]
    if packing:
        assert sum(len(batch.input_ids) for batch in short) * SHAPE.moe_topk < SHAPE.num_experts


@pytest.mark.parametrize("records", ["pairs", "judged"])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_answers_are_dealt_unevenly_and_some_ranks_get_none(
    num_processes: int, records: str
) -> None:
    uneven, _, short, _ = (
        lay_batches(step, packing=True, records=records) for step in make_steps(4)
    )
    size = len(short) // num_processes  # micro-batches that a rank adds up
    shares = [short[first : first + size] for first in range(0, len(short), size)]
    answers = [sum(int((batch.sides > 0).sum()) for batch in share) for share in shares]
    assert answers == [2 if records == "pairs" else 1, *[0] * (num_processes - 1)]
    tokens = [len(batch.input_ids) for batch in uneven]
    assert tokens[0] > 5 * tokens[-1]


def test_weights_modes_and_spans_are_mixed() -> None:
    batches = [batch for step in make_steps(4) for batch in lay_batches(step, packing=True)]
    assert set(np.concatenate([batch.loss_weights for batch in batches])) == {0.0, 0.5, 1.0}
    assert set(np.concatenate([batch.spans for batch in batches])) == {0, 1, 2, 3}
    assert {1, 2} <= set(np.concatenate([batch.modes for batch in batches]))
