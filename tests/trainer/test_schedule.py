"""Learning rates at the points that people check by hand."""

import pytest

from hunyuan_train.config.schema import OptimizerConfig
from hunyuan_train.trainer.schedule import learning_rate_at

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
