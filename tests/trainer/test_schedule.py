"""Learning rates at the points that people check by hand, and what is due when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.config.load import load_config
from hunyuan_train.config.schema import OptimizerConfig, RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.trainer.schedule import (
    check_warmup,
    describe_schedule,
    find_idle_settings,
    in_whole_steps,
    learning_rate_at,
    num_warmup_steps,
    whole_steps,
)

TOTAL = 100


def rates(**settings: object) -> list[float]:
    config = OptimizerConfig(learning_rate=1e-3, **settings)
    return [learning_rate_at(step, total_steps=TOTAL, config=config) for step in range(TOTAL)]


def test_cosine_with_min_lr_falls_from_peak_to_an_absolute_minimum() -> None:
    found = rates(lr_scheduler_type="cosine_with_min_lr", min_lr=1e-4)
    assert found[0] == 1e-3
    assert found[50] == pytest.approx(5.5e-4)
    assert found[-1] == pytest.approx(1e-4, rel=0.01)
    assert min(found) >= 1e-4


def test_no_schedule_ever_exceeds_the_peak_or_leaves_the_minimum() -> None:
    for name in ("cosine_with_min_lr", "cosine", "linear", "constant", "wsd"):
        found = rates(lr_scheduler_type=name, min_lr=1e-4, warmup_ratio=0.1)
        assert max(found) <= 1e-3, name
        assert min(found) > 0, name
        lowest = 1e-4 if name in ("cosine_with_min_lr", "wsd") else 0
        assert min(found[TOTAL // 10 :]) >= lowest, name


def test_warm_up_rises_linearly_without_an_idle_step() -> None:
    found = rates(lr_scheduler_type="constant_with_warmup", warmup_steps=4)
    assert found[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])


def test_linear_falls_towards_zero() -> None:
    found = rates(lr_scheduler_type="linear")
    assert found[0] == 1e-3
    assert found[-1] == pytest.approx(1e-5)


def test_wsd_is_flat_until_its_decay() -> None:
    found = rates(lr_scheduler_type="wsd", min_lr=1e-4, wsd_decay_ratio=0.2)
    assert set(found[:81]) == {1e-3}
    assert found[90] == pytest.approx(5.5e-4)
    assert found[-1] == pytest.approx(1.45e-4)


def config(**settings: object) -> RunConfig:
    return with_settings(RunConfig(), **settings)


def test_shares_of_a_run_become_whole_steps() -> None:
    asked = config(eval_steps=0.1, save_steps=0.25, logging_steps=0.001, warmup_steps=0.07)
    found = in_whole_steps(asked, 100)
    assert found.evaluation.eval_steps == 10
    assert found.checkpoints.save_steps == 25
    assert found.logs.logging_steps == 1
    assert found.optimizer.warmup_steps == 7  # and not the 8 above 7.000000000000001
    assert in_whole_steps(found, 7) == found


@given(share=st.floats(0.001, 0.999), total=st.integers(1, 10**6))
def test_a_share_is_at_least_one_step_and_at_most_the_run(share: float, total: int) -> None:
    assert 1 <= whole_steps(share, total) <= total
    assert whole_steps(share, total) == pytest.approx(share * total, abs=1)


@given(steps=st.integers(0, 10**6), total=st.integers(1, 10**6))
def test_whole_steps_stay_what_they_are(steps: int, total: int) -> None:
    assert whole_steps(steps, total) == steps


def test_the_whole_ratio_is_the_whole_run() -> None:
    assert num_warmup_steps(50, OptimizerConfig(warmup_ratio=1.0)) == 50
    assert num_warmup_steps(50, OptimizerConfig(warmup_steps=0.1, warmup_ratio=1.0)) == 5


@pytest.mark.parametrize(
    ("settings", "total", "words"),
    [
        ({"eval_steps": 100}, 6, "eval_steps is 100 and the run has 6 steps: it is evaluated at"),
        ({"save_steps": 200}, 200, "save_steps is 200 and the run has 200 steps: nothing is saved"),
        ({"logging_steps": 10}, 9, "logging_steps is 10 and the run has 9 steps: only its last"),
        ({"warmup_ratio": 0.03}, 31, "warmup_ratio is 0.03 and the run has 31 steps: the warm-up"),
        ({"warmup_steps": 0.03}, 31, "warmup_steps is 0.03 and the run has 31 steps"),
        ({"early_stopping_patience": 3, "eval_steps": 10}, 30, "ends before it could be stopped"),
        ({"router_check_steps": 10}, 9, "no router is looked at"),
        ({"profile": "10-12"}, 9, "nothing is traced"),
        ({}, 6, "the run has 6 steps only; a lower gradient_accumulation_steps"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_told(
    settings: dict[str, object], total: int, words: str
) -> None:
    found = find_idle_settings(config(**settings), total, has_evaluation=True)
    assert sum(words in one for one in found) == 1
    later = find_idle_settings(config(**settings), 100 * total, has_evaluation=True)
    assert not any(words in one for one in later)


@pytest.mark.parametrize("total", [10, 31, 1000])
def test_shares_make_sense_at_every_length(total: int) -> None:
    shares = config(eval_steps=0.1, save_steps=0.2, logging_steps=0.01, warmup_steps=0.1)
    assert list(find_idle_settings(shares, total, has_evaluation=True)) == []


def test_without_evaluation_data_no_evaluation_is_missed() -> None:
    settings = config(eval_steps=100)
    assert list(find_idle_settings(settings, 20, has_evaluation=False)) == []


@pytest.mark.parametrize("settings", [{"warmup_steps": 10}, {"warmup_ratio": 1.0}])
def test_a_warm_up_as_long_as_the_run_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the learning rate would never reach its top"):
        check_warmup(config(**settings), 10)


@pytest.mark.parametrize("settings", [{"warmup_steps": 9}, {"warmup_ratio": 0.9}, {}])
def test_a_shorter_warm_up_is_taken(settings: dict[str, object]) -> None:
    check_warmup(config(**settings), 10)
    check_warmup(config(warmup_ratio=0.1), 1)


@pytest.mark.parametrize("recipe", ["lora", "full", "long"])
def test_recipes_fit_every_length(recipe: str) -> None:
    recipe_config = load_config(["--recipe", recipe])
    for total in (100, 5_000):
        assert list(find_idle_settings(recipe_config, total, has_evaluation=True)) == []
    few = list(find_idle_settings(recipe_config, 6, has_evaluation=True))
    assert not any("eval_steps" in one or "save_steps" in one for one in few)


def test_a_schedule_is_described() -> None:
    shares = config(eval_steps=0.1, save_steps=0.25, warmup_steps=0.05)
    assert describe_schedule(shares, 200, has_evaluation=True) == (
        "evaluated every 20 steps and at the end, saved every 50 steps and at the end; "
        "10 steps of warm-up"
    )
    assert describe_schedule(config(), 200, has_evaluation=False) == (
        "no evaluation, saved at the end; 0 steps of warm-up"
    )
