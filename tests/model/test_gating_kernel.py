"""Kernels of the weighted SwiGLU, by Triton's interpreter and compiler: there is no GPU here."""

import pytest

from tests.clients.triton import ask_triton

SCRIPT = "tests.model.gating_in_triton"

pytestmark = pytest.mark.slow


def test_interpreted_they_give_the_formula_and_its_gradients() -> None:
    found = ask_triton(SCRIPT, "compare", TRITON_INTERPRET="1")
    assert len(found) == 12
    for name, distances in found.items():
        # The interpreter rounds ties of bfloat16 up; weights have gradients of float32.
        limits = [1e-6] * 4 if "float32" in name else [5e-3, 5e-3, 5e-3, 1e-6]
        assert all(one < limit for one, limit in zip(distances, limits, strict=True)), name


def test_their_code_reads_and_writes_each_number_once() -> None:
    found = ask_triton(SCRIPT, "compile")
    for name, code in found.items():
        assert code["bytes"] == (2 * 3 if "forward" in name else 2 * 5), name
        assert code["narrow"] == 0, name
        assert code["local_bytes"] == 0, name
        assert code["binary_bytes"] > 0, name
