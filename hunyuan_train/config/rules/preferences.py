"""Rules about preferences, and about adapters that a run starts from."""

from hunyuan_train.config.preference_reference import has_base_inside
from hunyuan_train.config.preference_schema import MAY_BE_REFERENCE_FREE
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.settings import FIELDS, read_setting
from hunyuan_train.errors import ConfigError

# Objectives that read each number; the others would silently leave it out.
READ_BY = {
    "beta": ("dpo", "ipo", "kto", "orpo", "simpo"),
    "label_smoothing": ("dpo", "simpo"),
    "rpo_alpha": ("dpo", "ipo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "reference_free": MAY_BE_REFERENCE_FREE,
    "precompute_ref_log_probs": ("dpo", "ipo", "kto"),
}


def check_preference_settings(run: ResolvedRun) -> None:
    """Refuse numbers that the objective does not read."""
    objective = run.config.preferences.objective
    for name, objectives in READ_BY.items():
        value = read_setting(run.config, name)
        if value != FIELDS[name].default and objective not in objectives:
            remedy = "" if objective != "sft" else " (--objective dpo, for pairs)"
            raise ConfigError(
                f"{name} is {value}, which only the objectives {', '.join(objectives)} read, and "
                f"objective is {objective}{remedy}; drop it, or choose one of them"
            )


def check_reference(run: ResolvedRun) -> None:
    """Refuse a reference that is not there."""
    config = run.config
    preferences = config.preferences
    if preferences.reference_free and preferences.precompute_ref_log_probs is True:
        raise ConfigError(
            "reference_free and precompute_ref_log_probs are both true; with no reference there is "
            "nothing to compute: drop one of them"
        )
    is_asked_always = preferences.needs_reference and preferences.precompute_ref_log_probs is False
    if is_asked_always and not has_base_inside(config):
        raise ConfigError(
            "precompute_ref_log_probs is false, but only adapters that start fresh, without new "
            "tokens, leave the reference inside of the model; drop it: the reference then judges "
            "the data once, before the first step"
        )


def check_started_adapters(run: ResolvedRun) -> None:
    """Refuse adapters to start from in a run that trains none."""
    lora = run.config.lora
    if lora.adapter_name_or_path and run.config.model.add_tokens:
        raise ConfigError(
            "adapter_name_or_path and add_tokens are both given; rows of new tokens are not read "
            "from adapters: merge them into the base first, with hunyuan-train merge"
        )
