"""Rules about trackers and traces, and how their settings are read."""

import re
from importlib.util import find_spec

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError

TRACKERS = ("wandb", "tensorboard", "swanlab", "mlflow")
INSTALLED = TRACKERS[:2]  # with this package


def tracker_names(report_to: str) -> list[str]:
    """The trackers of `--report_to`."""
    names = [name.strip() for name in report_to.split(",")]
    return list(INSTALLED) if names == ["all"] else [name for name in names if name != "none"]


def check_trackers(run: ResolvedRun) -> None:
    """Refuse a tracker that is not known."""
    report_to = run.config.logs.report_to
    if any(name not in TRACKERS for name in tracker_names(report_to)):
        raise ConfigError(
            f"report_to is {report_to}; give {', '.join(TRACKERS)}, several of them "
            "comma-separated, or none"
        )


def check_tracker_packages(run: ResolvedRun) -> None:
    """Refuse a tracker that is not installed."""
    report_to = run.config.logs.report_to
    for name in tracker_names(report_to):
        if find_spec(name) is None:
            raise ConfigError(
                f"report_to is {report_to}, and {name} is not installed: `pip install {name}`"
            )


def profiled_steps(profile: str | None) -> tuple[int, int] | None:
    """First and last step of `--profile`.

    Raises:
        ConfigError: it names no steps.
    """
    if profile is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", profile)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"profile is {profile}; name a step or several in a row, such as 10-12")
    return first, last


def check_profile(run: ResolvedRun) -> None:
    """Refuse to trace what are no steps."""
    profiled_steps(run.config.logs.profile)
