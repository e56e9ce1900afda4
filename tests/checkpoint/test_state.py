"""A resumed run is the uninterrupted one: to the bit on its layout, within 1e-6 on others."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.checkpoint.resharding import open_tensors
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.batches.loader import Position
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from hunyuan_train.families.tensors import StoredTensor, pieces_of_range
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.zero import (
    optimizer_step_count,
    read_state,
    state_kinds,
    trained_shards,
)
from hunyuan_train.trainer.state import Health, TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import kept_weights, my_share, resume, save_checkpoint, small_engine
from tests.ranks import run_each, run_ranks

NUM_STEPS = 6
SAVED_AT = 3
STATE = TrainerState(
    step=SAVED_AT,
    position=Position(epoch=1, row=7),
    tokens_seen=99,
    best_value=1 / 3,
    best_step=2,
    health=Health(recent_losses=(0.1, 2 / 3), num_bad_in_a_row=1, num_rollbacks=2),
)


class Outcome(NamedTuple):
    """What one rank saw of a run."""

    losses: list[float]
    norms: list[float]
    weights: dict[tuple[str, int], Tensor]
    states: dict[str, Tensor]  # by kind, released tensor and first element; right after loading
    draws: list[float]  # of each random generator at the end


def train_and_save(folder: Path, stage: int, expert_size: int, targets: str) -> Outcome:
    """Train all steps, saving on the way."""
    engine = small_engine(stage=stage, expert_size=expert_size, lora=lora_config(targets))
    seed_generators()
    outcome = train(engine, range(SAVED_AT))
    save_checkpoint(engine, STATE, folder)
    later = train(engine, range(SAVED_AT, NUM_STEPS))
    return later._replace(
        losses=outcome.losses + later.losses, norms=outcome.norms + later.norms, states={}
    )


def resume_and_train(folder: Path, stage: int, expert_size: int, targets: str) -> Outcome:
    """Start afresh, load the checkpoint, and train the remaining steps."""
    engine = small_engine(stage=stage, expert_size=expert_size, lora=lora_config(targets))
    assert resume(engine, folder) == STATE
    assert optimizer_step_count(engine) == SAVED_AT
    states = read_states(engine)
    return train(engine, range(SAVED_AT, NUM_STEPS))._replace(states=states)


def train(engine: Any, steps: range) -> Outcome:
    results = [
        train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=1e-3)
        for step in steps
    ]
    return Outcome(
        losses=[result.loss for result in results],
        norms=[result.grad_norm for result in results],
        weights=kept_weights(engine.module),
        states={},
        draws=[random.random(), float(np.random.normal()), float(torch.rand(1))],
    )


def seed_generators() -> None:
    """Bring each generator to a state that no other seed leads to."""
    rank = torch.distributed.get_rank()
    random.seed(rank)
    random.gauss(0, 1)  # leaves half of a pair behind, which belongs to the state
    np.random.seed(rank)
    np.random.normal()
    torch.manual_seed(rank)


def read_states(engine: Any) -> dict[str, Tensor]:
    """Every state of this rank, in terms of released tensors."""
    return {
        f"{kind}:{piece.tensor.name}:{piece.start}": read_state(engine, shard, kind)[
            piece.offset : piece.offset + piece.stop - piece.start
        ].clone()
        for shard in trained_shards(engine.module)
        for kind in state_kinds(engine)
        for piece in pieces_of_range(shard.stored, shard.start, shard.stop)
    }


def lora_config(targets: str) -> LoraConfig | None:
    if not targets:
        return None
    return LoraConfig(use_lora=True, lora_rank=4, lora_alpha=8, lora_target_modules=targets)


Case = tuple[int, int, str]  # ZeRO stage, ranks that share experts, what is adapted
CASES: dict[str, Case] = {
    "ZeRO-3, experts split": (3, 2, ""),
    "ZeRO-3": (3, 0, ""),
    "ZeRO-2": (2, 0, ""),
    "adapters, frozen experts split": (3, 2, "attention"),
    "adapters on split experts": (3, 2, "all"),
}
Saved = tuple[Path, list[Outcome]]  # a checkpoint of two ranks, and how the run went on from it


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """A run of each case."""
    folders = [tmp_path_factory.mktemp("run") / "step-000003" for _ in CASES]
    arguments = [(one, *case) for one, case in zip(folders, CASES.values(), strict=True)]
    runs = run_each(train_and_save, 2, arguments)
    return dict(zip(CASES, zip(folders, runs, strict=True), strict=True))


@pytest.fixture(scope="module")
def resumed(saved: dict[str, Saved]) -> dict[str, list[Outcome]]:
    """How each went on, in other processes."""
    arguments = [(saved[name][0], *case) for name, case in CASES.items()]
    return dict(zip(CASES, run_each(resume_and_train, 2, arguments), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_is_bit_equal(
    saved: dict[str, Saved], resumed: dict[str, list[Outcome]], name: str
) -> None:
    _, whole = saved[name]
    for one, later in zip(whole, resumed[name], strict=True):
        assert later.losses == one.losses[SAVED_AT:]
        assert later.norms == one.norms[SAVED_AT:]
        assert later.draws == one.draws
        assert later.weights.keys() == one.weights.keys()
        for key, values in one.weights.items():
            assert torch.equal(later.weights[key], values), key
    assert whole[0].draws != whole[1].draws


def join_ranks(saved: Saved) -> tuple[Path, Outcome]:
    """A checkpoint, and what both ranks had at the end."""
    folder, (first, second) = saved
    return folder, first._replace(weights=first.weights | second.weights)


LAYOUTS = [  # processes, ZeRO stage, ranks that share one set of experts (0: no layer for them)
    pytest.param(1, 3, 1, id="1 rank, experts over 1"),
    pytest.param(4, 3, 1, id="4 ranks, experts over 1"),
    pytest.param(4, 3, 4, id="4 ranks, experts over 4"),
    pytest.param(4, 3, 2, id="4 ranks, experts over 2", marks=pytest.mark.slow),
    pytest.param(2, 3, 1, id="2 ranks, experts over 1", marks=pytest.mark.slow),
    pytest.param(2, 2, 0, id="2 ranks, ZeRO-2"),
]


@pytest.mark.parametrize(("world_size", "stage", "expert_size"), LAYOUTS)
def test_other_layouts_go_on_from_the_same_bits(
    saved: dict[str, Saved], world_size: int, stage: int, expert_size: int
) -> None:
    folder, whole = join_ranks(saved["ZeRO-3, experts split"])
    resumed = run_ranks(resume_and_train, world_size, folder, stage, expert_size, "")
    check_same_run(folder, whole, resumed)


@pytest.mark.parametrize(
    ("world_size", "stage", "expert_size"),
    [(1, 3, 1), pytest.param(4, 3, 4, marks=pytest.mark.slow)],
)
def test_adapters_beside_frozen_split_experts_go_on_from_the_same_bits(
    saved: dict[str, Saved], world_size: int, stage: int, expert_size: int
) -> None:
    folder, whole = join_ranks(saved["adapters, frozen experts split"])
    resumed = run_ranks(resume_and_train, world_size, folder, stage, expert_size, "attention")
    check_same_run(folder, whole, resumed)
    frozen = [name for name, _ in whole.weights if "experts" in name]
    assert frozen
    assert not any("experts" in key for rank in resumed for key in rank.states)


def check_same_run(folder: Path, whole: Outcome, resumed: list[Outcome]) -> None:
    """All states equal what was saved; later steps are the uninterrupted run's within 1e-6."""
    sources = open_tensors(folder, read_manifest(folder), HUNYUAN_V1_MOE)
    assert sources.keys() == {"master", "exp_avg", "exp_avg_sq"}
    covered = dict.fromkeys(sources, 0)
    weights = join_ranges(whole.weights)
    for rank in resumed:
        for key, values in rank.states.items():
            kind, name, start = key.split(":")
            stored = StoredTensor(name, (int(start) + len(values),))
            saved = sources[kind].read(stored, int(start), int(start) + len(values))
            assert torch.equal(values, saved), key
            covered[kind] += len(values)
        assert rank.losses == pytest.approx(whole.losses[SAVED_AT:], abs=1e-6)
        assert rank.norms == pytest.approx(whole.norms[SAVED_AT:], rel=1e-6)
        for (name, start), values in rank.weights.items():
            expected = weights[name][start : start + len(values)]
            assert (values - expected).abs().max() < 1e-6, name
    num_saved = sum(tensor.numel for tensor in sources["master"].tensors.values())
    assert set(covered.values()) == {num_saved}


def join_ranges(kept: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Whole tensors from the ranges that ranks keep."""
    names = {name for name, _ in kept}
    return {
        name: torch.cat([kept[key] for key in sorted(key for key in kept if key[0] == name)])
        for name in names
    }
