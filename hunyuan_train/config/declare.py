"""Declares one setting of a section: its default, its sentence of `--help`, what it admits."""

from dataclasses import field, fields
from functools import partial
from typing import Any, Literal

from hunyuan_train.config.values import check_text, quote
from hunyuan_train.errors import ConfigError

Auto = Literal["auto"]
# Where nothing narrower is said: a number beyond it is a slip of the hand, and may overflow
# whatever computes with it.
LARGEST = 10**9
LEAST_SHARE = 1e-6  # of a run's steps, where none at all would make no sense
Form = Literal["text", "list", "path", "paths", "share"]


def setting(
    default: Any,
    help_text: str,
    *,
    low: float = -LARGEST,
    high: float = LARGEST,
    changes_steps: bool | Literal["by schedule"] = True,
    form: Form = "text",
) -> Any:
    """Declare a field.

    Args:
        default: its value where nobody gives one.
        help_text: the sentence that `--help` prints for it.
        low: the smallest number that it admits.
        high: the largest.
        changes_steps: whether another value makes the steps of a run other steps, so that a resume
            with it is refused. "by schedule": where the learning rate follows from it.
        form: how its value is written. "list": comma-separated, or a list in YAML; "path" and
            "paths": a file or folder, or a list of them, in which ~ is the home folder; "share": a
            whole number of steps, or below 1 a share of all steps of the run.
    """
    metadata = {"help": help_text, "low": low, "high": high, "changes_steps": changes_steps}
    return field(default=default, metadata=metadata | {"form": form})


# A setting that leaves every step what it would have been: it may differ after a resume.
free_setting = partial(setting, changes_steps=False)


def values_of(section: Any) -> dict[str, Any]:
    """The values of a dataclass by the names of its fields, sections as they are."""
    return {declared.name: getattr(section, declared.name) for declared in fields(section)}


def check_bounds(section: Any) -> None:
    """Refuse the first number outside its field's bounds, and the first text that is no line."""
    values = values_of(section)
    for declared in fields(section):
        value, limits = values[declared.name], declared.metadata
        if isinstance(value, str):
            check_text(declared.name, value)
        if isinstance(value, str | None):
            continue
        if not limits["low"] <= value <= limits["high"]:
            allowed = describe_bounds(limits["low"], limits["high"], is_low=value < limits["low"])
            if limits["form"] == "share":
                allowed = f"{allowed}, or to a share of the run below 1"
            raise ConfigError(f"{declared.name} is {quote(value)}; set it to {allowed}")
        if limits["form"] == "share" and value >= 1 and value != int(value):
            raise ConfigError(
                f"{declared.name} is {value}; set it to a whole number of steps, or to a share of "
                "the run below 1"
            )


def describe_bounds(low: float, high: float, *, is_low: bool) -> str:
    """Which numbers are admitted, for one that is too low or too high."""
    if high == LARGEST and is_low:
        return f"{low if low != LEAST_SHARE else 1} or more"
    return f"a number from {low} to {high}"
