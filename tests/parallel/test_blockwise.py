"""8-bit states: how near they are, that coding twice loses nothing, that rounding is unbiased."""

import pytest
import torch
from torch import Tensor

from hunyuan_train.config.optimizer_memory import LEAN_BLOCK
from hunyuan_train.parallel.blockwise import (
    BlockwiseState,
    decode,
    decode_range,
    encode_at_random,
    num_blocks,
)

SIGNED, UNSIGNED = torch.int8, torch.uint8


def random_values(num_elements: int, dtype: torch.dtype) -> Tensor:
    """Magnitudes over 13 octaves, as gradients have."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num_elements, generator=generator)
    values *= torch.exp2(13 * (torch.rand(num_elements, generator=generator) - 1)) * 1e-4
    return values if dtype == SIGNED else values.square()


def state_of(values: Tensor, dtype: torch.dtype) -> BlockwiseState:
    state = BlockwiseState.zeros(len(values), dtype, values.device)
    state.encode(values)
    return state


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("num_elements", [1, LEAN_BLOCK - 1, 3 * LEAN_BLOCK, 3 * LEAN_BLOCK + 5])
def test_a_value_within_range_is_kept_to_half_a_step(dtype: torch.dtype, num_elements: int) -> None:
    values = random_values(num_elements, dtype)
    state = state_of(values, dtype)
    assert len(state.scales) == num_blocks(num_elements)
    error = (state.decode() / values - 1).abs()
    scales = state.scales.repeat_interleave(LEAN_BLOCK)[:num_elements]
    in_range = values.abs() > scales * 2 ** -(15.8 if dtype == SIGNED else 31.9)
    assert in_range.float().mean() > 0.9
    assert error[in_range].max() < 0.0455  # half of 9.1 %


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_coding_what_was_decoded_changes_no_bit(dtype: torch.dtype) -> None:
    first = state_of(random_values(5 * LEAN_BLOCK + 7, dtype), dtype)
    second = state_of(first.decode(), dtype)
    assert torch.equal(second.codes, first.codes)
    assert torch.equal(second.scales, first.scales)


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_every_code_survives_decoding_and_coding(dtype: torch.dtype) -> None:
    low = -127 if dtype == SIGNED else 0
    codes = torch.arange(low, 128 if dtype == SIGNED else 256).to(dtype)
    for scale in (1e-30, 3.7e-12, 1.0, 1e20):
        values = decode(codes[None], torch.tensor([[scale]]))[0]
        assert torch.equal(state_of(values, dtype).codes, codes)


def test_zero_stays_zero_and_an_empty_second_moment_divides_nothing() -> None:
    for dtype in (SIGNED, UNSIGNED):
        assert state_of(torch.zeros(LEAN_BLOCK + 1), dtype).decode().abs().max() == 0
    values = torch.tensor([0.0, 1e-30, 1.0])
    assert torch.equal(state_of(values, SIGNED).decode(), torch.tensor([0.0, 0.0, 1.0]))
    # What is below the range counts as its end, so that an update is too small and not too large.
    assert state_of(values, UNSIGNED).decode().min() == 2.0**-32


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_rounding_at_random_is_right_on_average(dtype: torch.dtype) -> None:
    values = random_values(LEAN_BLOCK, dtype)[None]
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros_like(values, dtype=torch.float64)
    num_draws = 2000
    for _ in range(num_draws):
        dither = torch.rand(values.shape, generator=generator)
        codes, scales = encode_at_random(values, dtype, dither)
        total += decode(codes, scales[:, None])
    mean = total / num_draws
    scale = values.abs().max()
    in_range = values.abs() > scale * 2 ** -(15.8 if dtype == SIGNED else 31.9)
    # A draw is off by at most 9.1 %, the mean of 2000 by 0.1 % (one standard deviation).
    assert ((mean / values - 1).abs()[in_range]).max() < 0.006
    assert abs(float((mean / values - 1)[in_range].mean())) < 2e-4
    if dtype == SIGNED:  # below the range too: now and then the smallest magnitude, else 0
        assert (mean - values).abs().max() < 0.006 * scale


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_any_range_decodes_as_in_the_whole(dtype: torch.dtype) -> None:
    state = state_of(random_values(4 * LEAN_BLOCK + 9, dtype), dtype)
    whole = state.decode()
    for start, stop in ((0, 5), (LEAN_BLOCK - 1, LEAN_BLOCK + 1), (100, 4 * LEAN_BLOCK + 9)):
        first, last = start // LEAN_BLOCK, num_blocks(stop)
        part = decode_range(state.codes[start:stop], state.scales[first:last], start)
        assert torch.equal(part, whole[start:stop])
