"""What a step of preferences costs beside a step of fine-tuning on the same tokens."""

import pytest

from benchmarks.preferences import KEPT, METHODS, OFF, SFT_STEP, measure
from tests.ranks import run_ranks


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_preferences_costs_little_more_than_one_of_fine_tuning(method: str) -> None:
    [costs] = run_ranks(measure, 1, method, 8, 128, 5)
    print(costs)  # noqa: T201
    plain, bounds = costs[SFT_STEP], {KEPT: 0.9, OFF: 0.7}
    for kind in costs.keys() - {SFT_STEP}:
        assert plain.seconds / costs[kind].seconds >= bounds[kind]
        assert costs[kind].peak <= 1.02 * plain.peak
