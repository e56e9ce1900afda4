"""What each rank keeps under ZeRO: its ranges, its states, and steps that are dropped."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hunyuan_train.families.tensors import StoredTensor, pieces_of_range
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.records import MASTER, find_optimizer
from hunyuan_train.parallel.zero import (
    Shard,
    dropping_gradients,
    is_primary,
    optimizer_step_count,
    publish_weights,
    read_state,
    state_kinds,
    stored_state,
    trained_shards,
    weight_shards,
    weight_values,
    write_state,
)
from hunyuan_train.trainer.step import train_step
from tests.batches import WEIGHTS, global_batch, plain_model, released_state
from tests.engines import my_share, small_engine
from tests.ranks import run_ranks

ROUTER = ".mlp.gate.wg."

Ranges = list[tuple[str, int, int]]  # released tensor, first element and end

SPLITS = {  # ZeRO stage, ranks that share one set of experts, optimizer
    "ZeRO-3, experts split": (3, 2, "adamw"),
    "ZeRO-2": (2, 0, "adamw"),
    "ZeRO-3, experts split, lean": (3, 2, "lean"),
}


class CountingWeights:
    """The test weights, and what of them was asked for."""

    def __init__(self) -> None:
        self.ranges: Ranges = []

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        self.ranges.append((tensor.name, start, stop))
        return WEIGHTS.read(tensor, start, stop)


class Kept(NamedTuple):
    """What one rank has seen."""

    read: Ranges
    weights: dict[str, Tensor]  # by released tensor and first element, before any step
    masters: Ranges
    primary: Ranges
    wrong_states: list[str]  # that did not come back as they were written
    wrong_weights: list[str]  # that are not what was written as their master
    dropped_norm: float
    moved_by_dropped: list[str]
    counts: tuple[int, int]  # of updates, before and after a step that was dropped


def ranges_of(shard: Shard) -> Ranges:
    pieces = pieces_of_range(shard.stored, shard.start, shard.stop)
    return [(one.tensor.name, one.start, one.stop) for one in pieces]


def look_at_shards(stage: int, expert_size: int, optimizer: str) -> Kept:
    is_bf16, source = find_optimizer(optimizer).shares_masters, CountingWeights()
    engine = small_engine(
        stage=stage,
        expert_size=expert_size,
        optimizer=optimizer,
        is_bf16=is_bf16,
        source=source,
    )
    weights = {
        f"{piece.tensor.name}:{piece.start}": weight_values(shard)[
            piece.offset : piece.offset + piece.stop - piece.start
        ].clone()
        for shard in weight_shards(engine.module)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop)
    }
    train_step(engine, SFT, my_share(global_batch(0, 2)), learning_rate=1e-3)
    before = [weight_values(shard).clone() for shard in weight_shards(engine.module)]
    count = optimizer_step_count(engine)
    with dropping_gradients():
        dropped = train_step(engine, SFT, my_share(global_batch(1, 2)), learning_rate=1e-3)
    moved = [
        shard.name
        for shard, values in zip(weight_shards(engine.module), before, strict=True)
        if not torch.equal(weight_values(shard), values)
    ]
    return Kept(
        read=source.ranges,
        weights=weights,
        masters=[one for shard in trained_shards(engine.module) for one in ranges_of(shard)],
        primary=[
            one
            for shard in weight_shards(engine.module)
            if is_primary(shard)
            for one in ranges_of(shard)
        ],
        wrong_states=list(write_and_read(engine)),
        wrong_weights=list(weights_unlike_masters(engine)),
        dropped_norm=dropped.grad_norm,
        moved_by_dropped=moved,
        counts=(count, optimizer_step_count(engine)),
    )


def write_and_read(engine: Any) -> Any:
    """Write numbers that each kind of state can hold exactly; yield what reads otherwise."""
    shards, kinds = list(trained_shards(engine.module)), state_kinds(engine)
    assert kinds == [MASTER, "exp_avg", "exp_avg_sq"]

    def value(index: int, shard: Shard) -> Tensor:
        """A power of two, which bfloat16 holds, and a code where a whole block is of it."""
        return torch.full((shard.stop - shard.start,), 2.0 ** -(index % 100))

    numbered = [(kind, shard) for shard in shards for kind in kinds]
    for index, (kind, shard) in enumerate(numbered):
        write_state(engine, shard, kind, value(index, shard))
    publish_weights(engine)
    for index, (kind, shard) in enumerate(numbered):
        expected = value(index, shard)
        if not torch.equal(read_state(engine, shard, kind).float(), expected):
            yield f"{kind}:{shard.name}"
        main = stored_state(engine, shard, kind)[f"{kind}:{shard.name}"]
        if main.dtype.is_floating_point and not torch.equal(main.float(), expected):
            yield f"stored {kind}:{shard.name}"


def weights_unlike_masters(engine: Any) -> Any:
    """What a forward pass would compute with is what was written as masters."""
    for shard in trained_shards(engine.module):
        whole = next(one for one in weight_shards(engine.module) if one.name == shard.name)
        mine = weight_values(whole)[shard.start - whole.start : shard.stop - whole.start]
        if not torch.equal(mine.float(), read_state(engine, shard, MASTER).float()):
            yield shard.name


@pytest.fixture(scope="module", params=SPLITS)
def ranks(request: pytest.FixtureRequest) -> list[Kept]:
    return run_ranks(look_at_shards, 2, *SPLITS[request.param])


def covered_times(ranges: Ranges) -> dict[str, Tensor]:
    """How often each element of each released tensor is in them."""
    counts = {
        name: torch.zeros(values.numel()) for name, values in released_state(plain_model()).items()
    }
    for name, start, stop in ranges:
        counts[name][start:stop] += 1
    return counts


def test_each_rank_reads_the_weights_it_keeps_and_no_others(
    ranks: list[Kept],
) -> None:
    expected = released_state(plain_model())
    for kept in ranks:
        mine = set()
        for key, values in kept.weights.items():
            name, start = key.split(":")
            stop = int(start) + len(values)
            theirs = expected[name].flatten()[int(start) : stop]
            assert torch.equal(values, theirs.to(values.dtype)), key
            if ROUTER not in name:  # routers are read whole, for the layers that split experts
                mine.add((name, int(start), stop))
        assert mine == {one for one in kept.read if ROUTER not in one[0]}


def test_the_ranks_together_keep_every_master_once_and_speak_for_every_weight_once(
    ranks: list[Kept],
) -> None:
    masters = [one for kept in ranks for one in kept.masters]
    primary = [one for kept in ranks for one in kept.primary]
    for together in (masters, primary):
        for name, times in covered_times(together).items():
            assert (times == 1).all(), name


def test_states_read_as_they_were_written_and_weights_follow_their_masters(
    ranks: list[Kept],
) -> None:
    for kept in ranks:
        assert kept.wrong_states == []
        assert kept.wrong_weights == []


def test_a_dropped_step_changes_nothing_and_says_so_by_its_norm(
    ranks: list[Kept],
) -> None:
    for kept in ranks:
        assert kept.dropped_norm == float("inf")
        assert kept.moved_by_dropped == []
        assert kept.counts == (1, 1)
