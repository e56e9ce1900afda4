"""The lean optimizer by itself: its updates arrive, and are those of AdamW."""

import pytest
import torch
from torch import Tensor, nn

from hunyuan_train.optim.lean import (
    MOST_THAT_DIFFER,
    LeanAdamW,
    random_bits,
    random_seed,
    round_stochastically,
    wrap_int32,
)
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, SLICE_BLOCKS

RATE, BETAS, EPSILON = 2e-5, (0.9, 0.95), 1e-8
CPU = torch.device("cpu")


def first_weights(standard_deviation: float) -> Tensor:
    """Normal ones, of 32 and a half blocks."""
    generator = torch.Generator().manual_seed(0)
    num_elements = 32 * LEAN_BLOCK + LEAN_BLOCK // 2
    return (torch.randn(num_elements, generator=generator) * standard_deviation).bfloat16()


def gradient(step: int, num_elements: int) -> Tensor:
    """A direction that stays, noise that does not, and magnitudes that differ by element."""
    fixed = torch.Generator().manual_seed(1)
    direction = torch.randn(num_elements, generator=fixed) * 0.3
    magnitudes = torch.randn(num_elements, generator=fixed).mul(2).exp() * 1e-3
    noise = torch.randn(num_elements, generator=torch.Generator().manual_seed(100 + step))
    return (direction + noise) * magnitudes


def lean_optimizer(weights: Tensor, *, weight_decay: float = 0.0) -> LeanAdamW:
    group = {"params": [nn.Parameter(weights)], "weight_decay": weight_decay, "key": "test"}
    return LeanAdamW([group], lr=RATE, betas=BETAS, eps=EPSILON)


def adamw(weights: Tensor, *, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(weights)]
    return torch.optim.AdamW(
        parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=weight_decay
    )


def train(optimizer: torch.optim.Optimizer, num_steps: int, first_step: int = 0) -> Tensor:
    [group] = optimizer.param_groups
    [parameter] = group["params"]
    for step in range(first_step, first_step + num_steps):
        parameter.grad = gradient(step, len(parameter)).bfloat16().to(parameter.dtype)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("standard_deviation", "most_of_plain"), [(0.02, 0.3), (0.08, 0.15)])
def test_updates_survive_that_plain_bfloat16_loses(
    standard_deviation: float, most_of_plain: float
) -> None:
    start = first_weights(standard_deviation)
    change = train(adamw(start.float()), 60) - start.float()

    def share_that_survives(end: Tensor) -> float:
        return float((end.float() - start.float()) @ change / (change @ change))

    optimizer = lean_optimizer(start.clone())
    assert share_that_survives(train(optimizer, 60)) == pytest.approx(1, abs=0.05)
    assert share_that_survives(train(adamw(start.clone()), 60)) < most_of_plain
    num_moved, num_updated = optimizer.take_moved()
    assert num_updated == 60 * len(start)
    assert 0.02 < num_moved / num_updated < 0.4  # each step moves some, by a whole bfloat16 step
    assert optimizer.take_moved() == (0, 0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_float32_parameter_goes_where_adamw_takes_it(weight_decay: float) -> None:
    start = first_weights(0.02).float()
    change = train(adamw(start.clone(), weight_decay=weight_decay), 60) - start
    lean = train(lean_optimizer(start.clone(), weight_decay=weight_decay), 60) - start
    assert torch.nn.functional.cosine_similarity(lean, change, dim=0) > 0.985
    assert lean.norm() / change.norm() == pytest.approx(1, abs=0.01)


def test_moments_are_those_of_adamw() -> None:
    start = first_weights(0.02).float()
    exact, lean = adamw(start.clone()), lean_optimizer(start.clone())
    train(exact, 60)
    train(lean, 60)
    [expected], [found] = exact.state.values(), lean.state.values()
    for name, most in (("exp_avg", 0.06), ("exp_avg_sq", 0.07)):
        error = found[name].decode() - expected[name]
        assert error.norm() / expected[name].norm() < most, name


@pytest.mark.parametrize("beta2", [0.95, 0.99])
def test_steps_are_as_long_as_adamws_on_average(beta2: float) -> None:
    """Roundings scatter the second moment, by a fifth to a third; its root divides the step."""
    start, num_steps = torch.zeros(4 * LEAN_BLOCK), 400
    lengths = {}
    for make in (adamw, lean_optimizer):
        optimizer = make(start.clone())
        [group] = optimizer.param_groups
        group["betas"] = (0.9, beta2)
        train(optimizer, num_steps // 2)
        [parameter] = group["params"]
        lengths[make] = 0.0
        for step in range(num_steps // 2, num_steps):
            before = parameter.detach().clone()
            lengths[make] += float((train(optimizer, 1, step) - before).abs().mean())
    assert lengths[lean_optimizer] / lengths[adamw] == pytest.approx(1, abs=0.006)


def test_a_state_is_fifteen_bits_an_element_and_eight_bytes_a_block() -> None:
    optimizer = lean_optimizer(first_weights(0.02))
    train(optimizer, 1)
    [state] = optimizer.state.values()
    moments = state["exp_avg"], state["exp_avg_sq"]
    tensors = [tensor for moment in moments for tensor in (moment.codes, moment.scales)]
    num_elements = 32 * LEAN_BLOCK + LEAN_BLOCK // 2
    assert 8 * (sum(tensor.nbytes for tensor in tensors) - 33 * 8) == 15 * num_elements


def test_the_same_run_gives_the_same_bits_however_it_is_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = first_weights(0.02)
    whole = train(lean_optimizer(start.clone()), 5)
    monkeypatch.setattr("hunyuan_train.optim.blockwise_states.SLICE_BLOCKS", 3)
    assert torch.equal(train(lean_optimizer(start.clone()), 5), whole)


@pytest.mark.gpu
def test_by_one_kernel_it_takes_the_same_steps() -> None:
    num_elements = SLICE_BLOCKS * LEAN_BLOCK + 5  # of many blocks, and a rest that is none
    start = first_weights(0.02).repeat(SLICE_BLOCKS // 32)[:num_elements]
    change = gradient(0, num_elements).bfloat16()

    def weights_after_two_steps(*, is_compiled: bool) -> Tensor:
        optimizer = lean_optimizer(start.to("cuda", copy=True))
        if is_compiled:
            optimizer.compile_update(torch.device("cuda"))
            assert optimizer.update_flat is not None
        [parameter] = optimizer.param_groups[0]["params"]
        for _ in range(2):
            parameter.grad = change.to("cuda")
            optimizer.step()
        return parameter.detach()

    plain, compiled = (weights_after_two_steps(is_compiled=one) for one in (False, True))
    assert not torch.equal(plain.cpu(), start)
    assert (plain != compiled).float().mean() < MOST_THAT_DIFFER


def test_gradients_are_scaled_as_they_are_read() -> None:
    start = first_weights(0.02)
    scaled, halved = lean_optimizer(start.clone()), lean_optimizer(start.clone())
    scaled.gradient_scale = 0.5
    for optimizer, factor in ((scaled, 1.0), (halved, 0.5)):
        [parameter] = optimizer.param_groups[0]["params"]
        for step in range(3):
            parameter.grad = gradient(step, len(start)).bfloat16() * factor  # exact
            optimizer.step()
    both = [one.param_groups[0]["params"][0] for one in (scaled, halved)]
    assert torch.equal(*both)
    assert not torch.equal(both[0], start)
    halved.gradient_scale = 0.5  # another scale is another number on the device
    halved.param_groups[0]["params"][0].grad = gradient(3, len(start)).bfloat16()
    halved.step()
    [parameter] = scaled.param_groups[0]["params"]
    parameter.grad = gradient(3, len(start)).bfloat16()
    scaled.step()
    assert torch.equal(parameter, halved.param_groups[0]["params"][0])


def test_another_key_rounds_otherwise() -> None:
    start = first_weights(0.02)
    other = lean_optimizer(start.clone())
    other.param_groups[0]["key"] = "other"
    assert not torch.equal(train(lean_optimizer(start.clone()), 3), train(other, 3))


def test_weights_are_rounded_at_random_and_right_on_average() -> None:
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(512, generator=generator) * torch.rand(512, generator=generator).exp()
    total = torch.zeros(512, dtype=torch.float64)
    num_draws = 4000
    for step in range(num_draws):
        bits = random_bits(exact.shape, random_seed("key", step), 0, CPU)
        rounded = round_stochastically(exact, bits)
        assert ((rounded.float() - exact).abs() <= exact.abs() / 128).all()  # a neighbour
        total += rounded
    error = (total / num_draws - exact) / exact
    assert error.abs().max() < 128**-1 * 0.5 / num_draws**0.5 * 5
    assert abs(float(error.mean())) < 1e-5
    representable = exact.bfloat16()
    assert torch.equal(round_stochastically(representable.float(), bits), representable)


def test_random_bits_are_uniform_and_belong_to_positions() -> None:
    seed = random_seed("key", 7)
    bits = random_bits(torch.Size([2**20]), seed, 0, CPU)
    for shift in range(32):
        assert float(((bits >> shift) & 1).float().mean()) == pytest.approx(0.5, abs=0.003)
    later = random_bits(torch.Size([64, 16]), seed, 1000, CPU)
    assert torch.equal(later.flatten(), bits[1000:2024])
    other = random_bits(torch.Size([2**20]), random_seed("key", 8), 0, CPU)
    agreeing = (bits.bitwise_not() ^ other) & 0xFFFF
    assert float((agreeing == 0xFFFF).float().mean()) < 1e-3
    assert wrap_int32(2**31) == -(2**31)


def test_positions_beyond_32_bits_wrap_without_error() -> None:
    assert len(random_bits(torch.Size([8]), 2**64 - 1, 2**33, CPU)) == 8
