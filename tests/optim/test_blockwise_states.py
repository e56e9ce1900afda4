"""Coded states: how near they are, that coding twice loses nothing, that rounding is unbiased."""

import pytest
import torch
from torch import Tensor

from hunyuan_train.optim.blockwise_states import (
    BlockwiseState,
    code_range,
    decode_range,
    encode_stochastically,
    pack,
    unpack,
)
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, num_blocks, packed_bytes

SIGNED, UNSIGNED = torch.int8, torch.uint8
HALF_A_STEP = {SIGNED: 0.0455, UNSIGNED: 0.0955}  # of 9.1 % and 19.1 %


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
    assert error[in_range].max() < HALF_A_STEP[dtype]


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_coding_what_was_decoded_changes_no_bit(dtype: torch.dtype) -> None:
    first = state_of(random_values(5 * LEAN_BLOCK + 7, dtype), dtype)
    second = state_of(first.decode(), dtype)
    assert torch.equal(second.codes, first.codes)
    assert torch.equal(second.scales, first.scales)


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_every_code_survives_decoding_and_coding(dtype: torch.dtype) -> None:
    codes = torch.arange(-127 if dtype == SIGNED else 0, 128).to(dtype)
    kept = codes if dtype == SIGNED else pack(codes[None])[0]
    for scale in (1e-30, 3.7e-12, 1.0, 1e20):
        values = BlockwiseState(kept, torch.tensor([scale]), len(codes)).decode()
        assert len(values.unique()) == len(codes)
        assert torch.equal(state_of(values, dtype).codes, kept)


@pytest.mark.parametrize("num_codes", [1, 7, 8, 9, 64])
def test_eight_codes_share_seven_bytes(num_codes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(128, (3, num_codes), generator=generator, dtype=UNSIGNED)
    packed = pack(codes)
    assert packed.shape == (3, packed_bytes(num_codes)) == (3, -(-num_codes // 8) * 7)
    assert torch.equal(unpack(packed)[:, :num_codes], codes)


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
    power = 1 if dtype == SIGNED else 0.25
    for _ in range(num_draws):
        dither = torch.rand(values.shape, generator=generator)
        codes, scales = encode_stochastically(values, dtype, dither)
        total += BlockwiseState(codes[0], scales, LEAN_BLOCK).decode() ** power
    mean = total / num_draws
    scale = values.abs().max()
    in_range = values.abs() > scale * 2 ** -(15.8 if dtype == SIGNED else 31.9)
    values = values**power
    # The mean of 2000 draws is off by a fiftieth of half a step (one standard deviation).
    assert ((mean / values - 1).abs()[in_range]).max() < HALF_A_STEP[dtype] / 2000**0.5 * 6
    assert abs(float((mean / values - 1)[in_range].mean())) < 2e-4
    if dtype == SIGNED:  # below the range too: now and then the smallest magnitude, else 0
        assert (mean - values).abs().max() < 0.006 * scale


@pytest.mark.parametrize("dtype", [SIGNED, UNSIGNED])
def test_any_range_decodes_as_in_the_whole(dtype: torch.dtype) -> None:
    state = state_of(random_values(4 * LEAN_BLOCK + 9, dtype), dtype)
    whole = state.decode()
    for start, stop in (
        (0, 5),
        (3, 8),
        (9, 11),
        (LEAN_BLOCK - 1, LEAN_BLOCK + 1),
        (100, 4 * LEAN_BLOCK + 9),
    ):
        codes = state.codes[slice(*code_range(dtype, start, stop))]
        scales = state.scales[start // LEAN_BLOCK : num_blocks(stop)]
        part = decode_range(codes, scales, start, stop)
        assert torch.equal(part, whole[start:stop])
