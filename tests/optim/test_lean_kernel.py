"""The kernel of lean, by Triton's interpreter and its compiler: there is no GPU here."""

import pytest

from hunyuan_train.optim.records import OPTIMIZERS
from tests.clients.triton import ask_triton

SCRIPT = "tests.optim.lean_in_triton"
MOST_BYTES = 15  # that an update may move, a weight

pytestmark = pytest.mark.slow


def test_interpreted_it_gives_every_weight_the_value_of_the_plain_update() -> None:
    found = ask_triton(SCRIPT, "compare", TRITON_INTERPRET="1")
    for name, (differing, largest, moved) in found.items():
        assert moved > 0.9, name
        if "bfloat16" in name:
            assert differing == 0, name
        else:  # to a unit in the last place, by which products are summed
            assert largest < 1e-8, name


def test_its_code_for_hopper_moves_ten_bytes_a_weight() -> None:
    found = ask_triton(SCRIPT, "compile")
    assert found["bytes"] < MOST_BYTES
    assert found["bytes"] == pytest.approx(OPTIMIZERS["lean"].traffic_bytes, abs=0.1)
    assert found["local_bytes"] == 0  # what registers do not hold would be moved, too
    assert found["binary_bytes"] > 0


def test_a_kernel_that_triton_refuses_is_an_error_that_the_run_outlives() -> None:
    assert "power of 2" in ask_triton(SCRIPT, "break", TRITON_INTERPRET="1")
