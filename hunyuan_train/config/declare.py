"""Declares one setting of a section: its default, its sentence of `--help`, what it admits."""

import math
from dataclasses import field, fields
from functools import partial
from typing import Any, Literal

from hunyuan_train.errors import ConfigError

Auto = Literal["auto"]


def setting(
    default: Any,
    help_text: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    changes_steps: bool | Literal["by schedule"] = True,
) -> Any:
    """Declare a field.

    Args:
        default: its value where nobody gives one.
        help_text: the sentence that `--help` prints for it.
        low: the smallest number that it admits.
        high: the largest.
        changes_steps: whether another value makes the steps of a run other steps, so that a resume
            with it is refused. "by schedule": where the learning rate follows from it.
    """
    metadata = {"help": help_text, "low": low, "high": high, "changes_steps": changes_steps}
    return field(default=default, metadata=metadata)


# A setting that leaves every step what it would have been: it may differ after a resume.
free_setting = partial(setting, changes_steps=False)


def check_bounds(section: Any) -> None:
    """Refuse the first number of a section that lies outside its field's bounds."""
    for declared in fields(section):
        value = getattr(section, declared.name)
        low, high = declared.metadata["low"], declared.metadata["high"]
        if isinstance(value, str | None) or low <= value <= high:
            continue
        allowed = f"{low} or more" if high == math.inf else f"a number from {low} to {high}"
        raise ConfigError(f"{declared.name} is {value}; set it to {allowed}")
