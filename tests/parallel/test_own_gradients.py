"""Gradients are used where they lie, and train to the last bit what the engine's copies train."""

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import stage3
from torch import Tensor

from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.gradient_norm import BLOCK_ELEMENTS, sum_squares_on_cpu
from hunyuan_train.parallel.own_gradients import find_flat
from hunyuan_train.parallel.zero import flat_masters
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import kept_weights, my_share, small_engine
from tests.ranks import run_together

OURS = ("use_gradients_where_they_lie", "share_float32_masters")
NUM_STEPS, BATCHES_PER_STEP = 2, 4  # so that each rank adds up several micro-batches
CLIPPING, LOOSE = 0.5, 1e3  # limits of the norm that every step meets, and none

Trained = tuple[list[tuple[float, float]], dict[tuple[str, int], Tensor], list[int]]


def train(is_engines_own: bool, expert_size: int, max_grad_norm: float, is_bf16: bool) -> Trained:
    """Losses and norms, this rank's weights, and elements of each gradient reduced over ranks."""
    reduced: list[int] = []
    reduce = stage3.reduce_scatter_coalesced

    def note(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
        reduced.extend(tensor.numel() for tensor in tensors)
        return reduce(tensors, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage3, "reduce_scatter_coalesced", note)
        if is_engines_own:
            for name in OURS:
                patch.setattr(f"hunyuan_train.parallel.engine.{name}", lambda _: None)
        engine = small_engine(
            stage=3, expert_size=expert_size, max_grad_norm=max_grad_norm, is_bf16=is_bf16
        )
        pairs = zip(flat_masters(engine), flat_weights_of(engine), strict=True)
        are_shared = [master.data_ptr() == weights.data_ptr() for master, weights in pairs]
        assert all(are_shared) if not (is_engines_own or is_bf16) else not any(are_shared)
        steps = []
        for step in range(NUM_STEPS):
            mine = my_share(global_batch(step, BATCHES_PER_STEP))
            result = train_step(engine, SFT, mine, learning_rate=1e-3)
            steps.append((result.loss, result.grad_norm))
    assert all((norm > max_grad_norm) == (max_grad_norm == CLIPPING) for _, norm in steps)
    return steps, kept_weights(engine.module), reduced


def flat_weights_of(engine) -> list[Tensor]:
    return engine.optimizer.fp16_partitioned_groups_flat


# Experts are split over all ranks. A half and a whole are scaled by without rounding, so that
# results are equal to the last bit.
SETTINGS = ((CLIPPING, False), (LOOSE, True))  # limit, and whether in bfloat16
CASES = tuple((is_engines_own, *one) for is_engines_own in (True, False) for one in SETTINGS)


def by_ranks(num_ranks: int) -> dict[tuple, list[Trained]]:
    cases = tuple((own, num_ranks, limit, is_bf16) for own, limit, is_bf16 in CASES)
    return run_together(train, num_ranks, cases)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(("limit", "is_bf16"), SETTINGS)
def test_steps_are_those_of_the_engines_own_copies(
    num_ranks: int, limit: float, is_bf16: bool
) -> None:
    found = by_ranks(num_ranks)
    theirs, ours = (found[own, num_ranks, limit, is_bf16] for own in (True, False))
    for (their_steps, their_weights, _), (our_steps, our_weights, _) in zip(
        theirs, ours, strict=True
    ):
        assert our_steps == their_steps
        assert our_weights.keys() == their_weights.keys()
        for key, weights in our_weights.items():
            assert torch.equal(weights, their_weights[key]), key


def test_nothing_is_reduced_within_one_rank_and_no_expert_within_two() -> None:
    [(_, weights, reduced)] = by_ranks(1)[False, 1, CLIPPING, False]
    assert reduced == []
    others = sum(len(values) for (name, _), values in weights.items() if ".experts." not in name)
    for _, _, reduced in by_ranks(2)[False, 2, CLIPPING, False]:
        assert sum(reduced) == NUM_STEPS * BATCHES_PER_STEP // 2 * others


def test_the_engine_still_reduces_within_one_rank() -> None:
    """When this fails, `add_at_once` can go."""
    [(_, _, reduced)] = by_ranks(1)[True, 1, CLIPPING, False]
    assert reduced


def test_parts_are_one_tensor_only_where_they_lie_end_to_end() -> None:
    whole = torch.arange(10.0)
    flat = find_flat([whole[1:4], whole[4:5], whole[5:9]])
    assert flat is not None
    assert flat.data_ptr() == whole[1:].data_ptr()
    assert flat.tolist() == whole[1:9].tolist()
    assert find_flat([whole[1:4], whole[5:9]]) is None
    assert find_flat([whole[5:9], whole[1:4]]) is None
    assert find_flat([whole[:4], torch.zeros(1)]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_are_summed_in_float64_block_by_block(dtype: torch.dtype) -> None:
    tensors = [torch.randn(size).to(dtype) for size in (3, 2 * BLOCK_ELEMENTS + 5, 0)]
    tensors[0][1] = 1e25  # whose square float32 cannot hold
    expected = sum(one.double().square().sum() for one in tensors)
    assert sum_squares_on_cpu(tensors) == pytest.approx(float(expected), rel=1e-14)
    tensors[1][-1] = torch.nan
    assert sum_squares_on_cpu(tensors).isnan()
