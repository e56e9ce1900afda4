"""One record for each optimizer is all that settings and plans need to know of it."""

from dataclasses import replace
from typing import get_args

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.optim.lean_memory import LEAN_BLOCK
from hunyuan_train.optim.records import (
    OPTIMIZERS,
    RECORDS,
    OptimizerName,
    choose_optimizer,
    describe_optimizers,
    find_optimizer,
)
from hunyuan_train.planner.disk import plan_disk
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.search import find_nearest
from hunyuan_train.planner.states import optimizer_bytes

EIGHT_80GB = Machine(num_gpus=8, num_cores=8, gpu_memory=80 * 10**9)


def settings_with(optimizer: str) -> RunConfig:
    """A run of the released model as full.yaml has it; the name is not checked."""
    return with_settings(load_config(["--recipe", "full"]), optimizer=optimizer)


def run_with(optimizer: str, machine: Machine = EIGHT_80GB) -> ResolvedRun:
    config = settings_with(optimizer)
    return resolve(config, shape=A13B, machine=machine, known=SETTINGS_ALONE)


def test_every_name_that_the_setting_takes_has_one_record() -> None:
    assert tuple(OPTIMIZERS) == get_args(OptimizerName)
    assert len(RECORDS) == len(OPTIMIZERS)
    for name in OPTIMIZERS:
        assert load_config(["--optimizer", name]).optimizer.optimizer == name
    with pytest.raises(ConfigError, match="'adamax'; it takes adamw, lean, offload, sgd or auto"):
        load_config(["--optimizer", "adamax"])


@pytest.mark.parametrize("name", ["adamax", "AdamW", "auto", ""])
def test_an_unknown_optimizer_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer is {name}, .* adamw, lean, offload, sgd"):
        find_optimizer(name)


def test_an_unknown_optimizer_is_not_planned_as_another() -> None:
    with pytest.raises(ConfigError, match="optimizer is adamax"):
        run_with("adamax")
    run = run_with("adamw")
    unknown = replace(run, config=with_settings(run.config, optimizer="adamax"))
    for plan in (optimizer_bytes, plan_disk):
        with pytest.raises(ConfigError, match="optimizer is adamax"):
            plan(unknown)


@pytest.mark.parametrize(
    ("name", "master", "states"),
    [
        ("adamw", 4, 8),
        ("offload", 4, 8),
        ("sgd", 4, 0),
        ("lean", 0, 15 / 8 + 8 / LEAN_BLOCK),  # 8 and 7 bits, and a float32 scale a block for each
    ],
)
def test_bytes_of_an_element(name: str, master: int, states: float) -> None:
    kept = find_optimizer(name).kept(100 * LEAN_BLOCK)
    assert (kept.master, kept.states) == (100 * LEAN_BLOCK * master, 100 * LEAN_BLOCK * states)
    exact = find_optimizer(name).kept(100 * LEAN_BLOCK, is_exact=True)
    assert (exact.master, exact.states) == (100 * LEAN_BLOCK * 4, kept.states)


def test_auto_follows_the_place_of_the_states() -> None:
    assert choose_optimizer(is_on_host=False) == "adamw"
    assert choose_optimizer(is_on_host=True) == "offload"


def test_one_more_record_is_planned_suggested_and_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AdamW with one float32 state instead of two, whose update moves less."""
    fake = replace(
        find_optimizer("adamw"),
        name="lion",
        summary="one state",
        states=("exp_avg",),
        state_bytes=lambda num_elements: 4 * num_elements,
        traffic_bytes=22,
        search_price=0.5,
    )
    monkeypatch.setitem(OPTIMIZERS, "lion", fake)
    plans = {name: estimate_run(run_with(name), Hardware()) for name in ("adamw", "lion")}
    held = {name: optimizer_bytes(plan.run) for name, plan in plans.items()}
    assert held["lion"] * 12 == held["adamw"] * 8
    assert plans["lion"].disk.checkpoint * 12 == plans["adamw"].disk.checkpoint * 8
    seconds = {name: plan.speed.update_seconds for name, plan in plans.items()}
    # Besides, two bytes of each gradient are read for the norm, and read and written to be clipped.
    assert seconds["lion"] / seconds["adamw"] == pytest.approx((22 + 6) / (30 + 6))
    assert "lion (one state)" in describe_optimizers()
    # Its states fit where those of AdamW do not, and it costs less than lean.
    wide = replace(EIGHT_80GB, gpu_memory=140 * 10**9)
    found = find_nearest(settings_with("adamw"), run_with("adamw", wide), Hardware())
    assert found is not None
    assert found.flags == ["--optimizer lion"]
