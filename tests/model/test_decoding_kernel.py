"""The kernel that decodes experts, by Triton's interpreter and compiler: there is no GPU here."""

import pytest

from hunyuan_train.model.compression_scheme import Scheme
from tests.clients.triton import ask_triton

SCRIPT = "tests.model.decoding_in_triton"

pytestmark = pytest.mark.slow


def test_interpreted_it_gives_every_weight_the_bits_of_the_plain_decoding() -> None:
    found = ask_triton(SCRIPT, "compare", TRITON_INTERPRET="1")
    assert len(found) == 40  # forms, dtypes of scales and of weights
    assert not any(found.values()), found


def test_its_code_reads_codes_and_scales_once_and_writes_weights_once() -> None:
    found = ask_triton(SCRIPT, "compile")
    assert len(found) == 14  # with FP8 in hardware, and without
    for name, code in found.items():
        scheme = Scheme.titled(name.partition(" ")[0])
        rows, columns = 128, 4096
        codes = scheme.num_bytes(rows, columns, scale_bytes=2) / (rows * columns)
        # A tile asks for the one scale of a whole row or block again, which lies in the cache.
        assert codes + 2 <= code["bytes"] < codes + 2 + 1 / 64, name
        assert code["narrow"] == 0, name
        assert code["local_bytes"] == 0, name
        assert code["binary_bytes"] > 0, name
