"""Which model preferences are held to: the base of fresh adapters, or what a run begins with."""

from hunyuan_train.config.schema import RunConfig


def uses_reference_cache(config: RunConfig) -> bool:
    """Whether the reference judges all data before the first step."""
    preferences = config.preferences
    if not preferences.needs_reference:
        return False
    if preferences.precompute_ref_log_probs == "auto":
        return not has_base_inside(config)
    return preferences.precompute_ref_log_probs


def reference_is_base(config: RunConfig) -> bool:
    """Whether the reference is the model with its adapters off, asked in every step."""
    return config.preferences.needs_reference and not uses_reference_cache(config)


def has_base_inside(config: RunConfig) -> bool:
    """Whether the model that training starts from is there at any step, behind the adapters.

    Not behind adapters that were trained before: they belong to the reference. Nor where rows of
    new tokens are trained beside them.
    """
    lora = config.lora
    return lora.use_lora and not lora.adapter_name_or_path and not config.model.add_tokens
