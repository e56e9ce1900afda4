"""The lean optimizer under the engine: what it keeps, byte for byte, and that it trains alike."""

import gc
import time

import pytest
import torch
from deepspeed.runtime.zero import stage3
from torch import Tensor

from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.lean_memory import LEAN_BLOCK
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.parallel.optimizer import decay_groups, share_of_weights_moved
from hunyuan_train.parallel.routers import pinned_routers
from hunyuan_train.parallel.shared_masters import exact_parameters, flat_weights
from hunyuan_train.parallel.zero import flat_masters
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss, plain_model
from tests.engines import LEARNING_RATES, MAX_GRAD_NORM, WEIGHT_DECAY, my_share, small_engine
from tests.ranks import run_ranks, run_together

NUM_STEPS, BATCHES_PER_STEP = 6, 4

Steps = list[tuple[float, float]]  # loss and gradient norm of each step

SLACK_BYTES = 4096  # tables of the codes, rope's frequencies, scalars
SPLITS = ((3, 2), (3, 0), (2, 0))  # ZeRO stage, ranks that share one set of experts
STAGES = ((2,), (3,))


def storages() -> dict[int, torch.UntypedStorage]:
    """Every tensor storage that is alive in this process, by address; none is reused meanwhile."""
    gc.collect()
    tensors = (found for found in gc.get_objects() if isinstance(found, Tensor))
    found = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {storage.data_ptr(): storage for storage in found}


def lean_bytes(num_elements: int, *, is_exact: bool = False) -> int:
    """Weights and gradients in bfloat16, and what plans say that lean keeps beside them."""
    return 4 * num_elements + find_optimizer("lean").kept(num_elements, is_exact=is_exact).total


def count_bytes(expert_size: int) -> dict[str, int]:
    """What this rank holds after two steps, and what it should."""
    before = storages()
    engine = small_engine(stage=3, expert_size=expert_size, optimizer="lean", is_bf16=True)
    for step in range(2):
        train_step(engine, SFT, my_share(global_batch(step, 2)), learning_rate=1e-3)
    time.sleep(0.2)  # gloo's thread lets go of a collective's buffers after its result is there
    held = [storage.nbytes() for at, storage in storages().items() if at not in before]
    optimizer = engine.optimizer
    exact = {id(parameter) for parameter in exact_parameters(engine.module)}
    parts = [(len(flat), id(parameter) in exact) for parameter, flat in flat_weights(engine)]
    return {
        "held": sum(held),
        "lean": sum(lean_bytes(size, is_exact=is_exact) for size, is_exact in parts),
        "parameters": sum(size for size, _ in parts),
        "exact": sum(size for size, is_exact in parts if is_exact),
        # Beside it the engine holds its bucket, and small parameters whole, as before.
        "bucket": sum(bucket.buffer.nbytes for bucket in optimizer.ipg_buckets.values()),
        "gathered": sum(
            2 * parameter.ds_numel
            for parameter in optimizer.persistent_parameters
            if parameter.data_ptr() != parameter.ds_tensor.data_ptr()  # in a group of one they are
        ),
        "routers": sum(one.float32_weight.nbytes for one in pinned_routers(engine.module)),
    }


@pytest.mark.parametrize("expert_size", [2, 0])
def test_a_rank_holds_the_bytes_that_plans_count_with(expert_size: int) -> None:
    for rank in run_ranks(count_bytes, 2, expert_size):
        others = rank["bucket"] + rank["gathered"] + rank["routers"]
        assert 0 <= rank["held"] - others - rank["lean"] <= SLACK_BYTES
        # Beside a float32 master of what is small, 5 7/8 bytes and the scales (of cut blocks too).
        assert 5.875 < (rank["lean"] - 4 * rank["exact"]) / rank["parameters"] < 5.885


def test_at_the_released_size_a_parameter_takes_less_than_six_bytes() -> None:
    experts_of_a_layer = 8 * 4096 * 3072
    assert lean_bytes(experts_of_a_layer) / experts_of_a_layer == 5 + 7 / 8 + 8 / 2048


def test_the_engine_uses_gradients_of_one_parameter_where_they_lie() -> None:
    """Its flat gradient of a group is made with this, and `lean_groups` has one parameter each."""
    gradient = torch.ones(LEAN_BLOCK, dtype=torch.bfloat16)
    assert stage3._flatten_dense_tensors([gradient]).data_ptr() == gradient.data_ptr()


def train_lean(stage: int, expert_size: int) -> tuple[Steps, float | None, list[str]]:
    """Losses and norms; the share of weights that moved; and the kinds of masters."""
    engine = small_engine(stage=stage, expert_size=expert_size, optimizer="lean", is_bf16=True)
    steps = []
    for step in range(NUM_STEPS):
        mine = my_share(global_batch(step, BATCHES_PER_STEP))
        result = train_step(engine, SFT, mine, learning_rate=LEARNING_RATES["lean"])
        steps.append((result.loss, result.grad_norm))
    kinds = []
    for master, (_, weights) in zip(flat_masters(engine), flat_weights(engine), strict=True):
        is_shared = master.data_ptr() == weights.data_ptr()
        kinds.append(f"{'shared' if is_shared else 'own'} {master.dtype}")
    return steps, share_of_weights_moved(engine), kinds


def train_plain() -> Steps:
    """AdamW in one process, without engine, ranks, packing or recomputation."""
    model = plain_model()
    groups = decay_groups(model, WEIGHT_DECAY)
    stepper = torch.optim.AdamW(groups, lr=LEARNING_RATES["adamw"], betas=(0.9, 0.95))
    steps = []
    for step in range(NUM_STEPS):
        loss = plain_loss(model, global_batch(step, BATCHES_PER_STEP))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        stepper.step()
        stepper.zero_grad()
        steps.append((loss.item(), norm.item()))
    return steps


@pytest.fixture(scope="module")
def plain_adamw() -> Steps:
    return train_plain()


@pytest.mark.parametrize(("stage", "expert_size"), SPLITS)
def test_every_split_takes_the_steps_of_adamw(
    plain_adamw: Steps, stage: int, expert_size: int
) -> None:
    ranks = run_together(train_lean, 2, SPLITS)[stage, expert_size]
    assert ranks[0] == ranks[1]
    steps, moved, kinds = ranks[0]
    for (loss, norm), (expected_loss, expected_norm) in zip(steps, plain_adamw, strict=True):
        assert loss == pytest.approx(expected_loss, abs=0.02)
        assert norm == pytest.approx(expected_norm, rel=0.03)
    assert 0.5 < moved < 1  # at this rate, which is far above that of fine-tuning
    assert set(kinds) == {"shared torch.bfloat16", "own torch.float32"}
    model = plain_model()
    num_exact = sum(p.ndim < 2 or ".gate.wg." in name for name, p in model.named_parameters())
    assert kinds.count("own torch.float32") == num_exact


def scales_of_updates(norms: list[float]) -> list[float]:
    """What gradients are multiplied by in updates one after the other."""
    engine = small_engine(stage=3, expert_size=0, optimizer="lean", is_bf16=True)
    scales = []
    for norm in norms:
        engine.optimizer.unscale_and_clip_grads(0, torch.tensor(norm))
        scales.append(engine.optimizer.optimizer.gradient_scale)
    return scales


def test_a_short_gradient_is_not_scaled_as_the_long_one_before_it() -> None:
    [scales] = run_ranks(scales_of_updates, 1, [10 * MAX_GRAD_NORM, MAX_GRAD_NORM / 2])
    assert scales == [pytest.approx(0.1, rel=1e-5), 1.0]


def masters_without_our_hand(stage: int) -> list[bool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hunyuan_train.parallel.engine.share_masters", lambda _: None)
        patch.setattr("hunyuan_train.parallel.engine.keep_pinned_masters", lambda _: None)
        engine = small_engine(stage=stage, expert_size=0, optimizer="lean", is_bf16=True)
    pairs = zip(flat_masters(engine), flat_weights(engine), strict=True)
    return [master.data_ptr() == weights.data_ptr() for master, (_, weights) in pairs]


@pytest.mark.parametrize("stage", STAGES)
def test_the_engine_still_keeps_a_second_copy_of_the_weights(stage: tuple[int]) -> None:
    """When this fails for a stage, `share_masters` need no longer replace its masters."""
    [are_shared] = run_together(masters_without_our_hand, 1, STAGES)[stage]
    assert not any(are_shared)
