import pytest

from hunyuan_train.config.rules import logs
from hunyuan_train.errors import ConfigError
from tests.config.resolved import resolve_flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--report_to wandb,neptune", "report_to is wandb,neptune; give wandb, tensorboard"),
        ("--profile 9-3", "profile is 9-3; name a step or several in a row, such as 10-12"),
    ],
)
def test_trackers_and_steps_that_do_not_exist_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(flags)


def test_a_missing_tracker_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="report_to is wandb, and wandb is not installed: `pip install"
    ):
        resolve_flags("--report_to wandb")
