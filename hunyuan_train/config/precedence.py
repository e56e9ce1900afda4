"""Flags over a file of settings, also where the two say the same thing by different settings.

A recipe that counts steps gives way to a flag that counts epochs, and one that holds out a share of
the training data to a flag that names a file of held-out dialogues. The demo's held-out dialogues
give way where flags ask for preferences.
"""

from collections.abc import Mapping
from typing import Any

from hunyuan_train.errors import ConfigError

DEMO_HELD_OUT = "data/practice_eval.jsonl"
Values = dict[str, Any]  # settings by name, still as YAML or the command line has them

# Of two settings that say the same in different ways, which one is looked at first.
OVERRULED_BY = {"num_train_epochs": "max_steps", "warmup_ratio": "warmup_steps"}


def merge_settings(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> Values:
    """Flags over the settings of a file, each as it was read.

    Raises:
        ConfigError: a share and a file are to be held out in one place.
    """
    kept = dict(settings)
    for weaker, stronger in OVERRULED_BY.items():
        if weaker in flags and stronger not in flags:
            kept.pop(stronger, None)
    return _merge_held_out(kept, flags)


def _merge_held_out(kept: Values, flags: Mapping[str, Any]) -> Values:
    """The same for what is held out for evaluation: a file, or a share, and never both."""
    if _is_file(flags.get("eval_data_file")):
        kept.pop("eval_fraction", None)
    elif _is_share(flags.get("eval_fraction")):
        kept.pop("eval_data_file", None)
    elif flags.get("objective", "sft") != "sft" and kept.get("eval_data_file") == DEMO_HELD_OUT:
        kept = {name: kept[name] for name in kept if name not in ("eval_data_file", "eval_steps")}
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
