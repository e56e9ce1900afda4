"""What is held out for evaluation: a file, or a share of the training data, and never both.

A recipe holds out a share where no file is given, so what a flag says wins over what a file of
settings says about the same thing in other words.
"""

from collections.abc import Mapping
from typing import Any

from hunyuan_train.errors import ConfigError

Values = dict[str, Any]  # settings by name, still as YAML or the command line has them


def merge_held_out(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> Values:
    """Flags over the settings of a file, each as it was read.

    Raises:
        ConfigError: a share and a file are asked for in one place.
    """
    kept = dict(settings)
    if _is_file(flags.get("eval_data_file")):
        kept.pop("eval_fraction", None)
    elif _is_share(flags.get("eval_fraction")):
        kept.pop("eval_data_file", None)
    merged = {**kept, **flags}
    share, file = merged.get("eval_fraction"), merged.get("eval_data_file")
    if _is_share(share) and _is_file(file):
        raise ConfigError(
            f"eval_fraction is {share} and eval_data_file {file}; keep one of them: a share is "
            "held out where there is no file"
        )
    is_asked = bool({"eval_fraction", "eval_data_file"} & flags.keys())
    if is_asked and not (_is_share(share) or _is_file(file)) and "eval_steps" not in flags:
        merged.pop("eval_steps", None)  # of a recipe that would have held something out
    return merged


def _is_file(value: object) -> bool:
    """Whether a file is named; "none" is how a flag says that there is none."""
    return value not in (None, "", "none")


def _is_share(value: object) -> bool:
    """Whether a share above 0 is asked for; what is no number is refused elsewhere."""
    try:
        return float(str(value)) > 0
    except ValueError:
        return False
