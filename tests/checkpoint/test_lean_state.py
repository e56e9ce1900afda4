"""Checkpoints of the lean optimizer: small, bit-equal on their layout, readable by any other."""

from pathlib import Path

import pytest
import torch

from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.checkpoint.resharding import open_tensors
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.optim.records import find_optimizer
from tests.batches import plain_model
from tests.checkpoint.test_state import NUM_STEPS, SAVED_AT, STATE, Outcome, read_states, train
from tests.engines import resume, save_checkpoint, small_engine
from tests.ranks import run_ranks

LAYOUT = (3, 2)  # ZeRO stage, ranks that share one set of experts; of two ranks


def train_and_save(folder: Path, stage: int, expert_size: int, optimizer: str) -> Outcome:
    engine = small_engine(
        stage=stage,
        expert_size=expert_size,
        optimizer=optimizer,
        is_bf16=find_optimizer(optimizer).shares_masters,
    )
    train(engine, range(SAVED_AT))
    states = read_states(engine)
    save_checkpoint(engine, STATE, folder)
    return train(engine, range(SAVED_AT, NUM_STEPS))._replace(states=states)


def resume_and_train(
    folder: Path, stage: int, expert_size: int, optimizer: str, last_step: int
) -> Outcome:
    engine = small_engine(
        stage=stage,
        expert_size=expert_size,
        optimizer=optimizer,
        is_bf16=find_optimizer(optimizer).shares_masters,
    )
    assert resume(engine, folder) == STATE
    states = read_states(engine)
    return train(engine, range(SAVED_AT, last_step))._replace(states=states)


@pytest.fixture(scope="module")
def lean_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A checkpoint of two ranks with split experts, and how the run went on."""
    folder = tmp_path_factory.mktemp("lean") / "step-000003"
    return folder, run_ranks(train_and_save, 2, folder, *LAYOUT, "lean")


@pytest.fixture(scope="module")
def adamw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adamw") / "step-000003"
    run_ranks(train_and_save, 2, folder, *LAYOUT, "adamw")
    return folder


def check_bit_equal(folder: Path, whole: list[Outcome], stage: int, expert_size: int) -> None:
    resumed = run_ranks(resume_and_train, 2, folder, stage, expert_size, "lean", NUM_STEPS)
    for one, later in zip(whole, resumed, strict=True):
        assert later.losses == one.losses
        assert later.norms == one.norms
        for key, values in one.weights.items():
            assert torch.equal(later.weights[key], values), key
        assert later.states.keys() == one.states.keys()
        for key, values in one.states.items():
            assert torch.equal(later.states[key], values), key


def test_a_resumed_run_is_bit_equal(lean_run: tuple[Path, list[Outcome]]) -> None:
    check_bit_equal(*lean_run, *LAYOUT)


def test_a_resumed_run_without_expert_parallelism_is_bit_equal(tmp_path: Path) -> None:
    folder = tmp_path / "step-000003"
    check_bit_equal(folder, run_ranks(train_and_save, 2, folder, 2, 0, "lean"), 2, 0)


def test_a_checkpoint_takes_less_than_four_bytes_a_parameter(
    lean_run: tuple[Path, list[Outcome]],
) -> None:
    folder, _ = lean_run
    num_bytes = sum(file.stat().st_size for file in folder.glob("rank-*.safetensors"))
    num_parameters = sum(parameter.numel() for parameter in plain_model().parameters())
    # Headers and random states are much of it here.
    assert num_bytes < 4.0 * num_parameters


@pytest.mark.parametrize(
    ("saved_with", "world_size", "stage", "expert_size", "optimizer"),
    [
        pytest.param("lean", 4, 3, 2, "lean", id="4 ranks"),
        pytest.param("lean", 2, 2, 0, "lean", id="ZeRO-2"),
        pytest.param("lean", 2, 3, 2, "adamw", id="from lean to AdamW"),
        pytest.param("adamw", 2, 3, 2, "lean", id="from AdamW to lean"),
        pytest.param("adamw", 2, 3, 2, "sgd", id="from AdamW to SGD"),
    ],
)
def test_other_layouts_and_optimizers_go_on_from_it(
    request: pytest.FixtureRequest,
    saved_with: str,
    world_size: int,
    stage: int,
    expert_size: int,
    optimizer: str,
) -> None:
    """Weights stay the same; moments are coded anew, to half of a code's 9.1 or 19 %.

    An optimizer without moments leaves them behind.
    """
    is_lean = saved_with == "lean"
    value = request.getfixturevalue("lean_run" if is_lean else "adamw_folder")
    folder = value[0] if is_lean else value
    sources = open_tensors(folder, read_manifest(folder), HUNYUAN_V1_MOE)
    ranks = run_ranks(
        resume_and_train, world_size, folder, stage, expert_size, optimizer, SAVED_AT + 1
    )
    for rank in ranks:
        assert rank.losses == ranks[0].losses
        kinds = {key.partition(":")[0] for key in rank.states}
        assert kinds == {"master", *find_optimizer(optimizer).states}
        for key, values in rank.states.items():
            kind, name, start = key.split(":")
            stored = StoredTensor(name, (int(start) + len(values),))
            saved = sources[kind].read(stored, int(start), int(start) + len(values))
            if optimizer != "lean" or (kind == "master" and is_lean):
                assert torch.equal(values.float(), saved), key
            else:  # in another split, blocks begin elsewhere; float32 weights become bfloat16
                most = {"master": 2**-8, "exp_avg": 0.046, "exp_avg_sq": 0.096}[kind]
                least = saved.abs().max() * 2**-15  # coarser where a block's largest is far larger
                assert ((values - saved).abs() <= most * saved.abs() + least).all(), key
    if is_lean:
        assert ranks[0].losses == pytest.approx(value[1][0].losses[:1], abs=0.01)
