"""The gentlest form of frozen experts that fits, where the settings leave the choice."""

from collections.abc import Callable

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.model.expert_formats import GENTLEST_FIRST
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import Hardware


def resolve_gentlest(
    config: RunConfig, resolve: Callable[[RunConfig], ResolvedRun], hardware: Hardware
) -> ResolvedRun:
    """Resolve a run, with experts in the first form in which it fits.

    That is bfloat16 where experts are not frozen by adapters. Where nothing fits it is the smallest
    form, so that what is said to be missing is missing whatever the form.

    Args:
        config: as it was asked for.
        resolve: settings to a run.
        hardware: that the run has.

    Raises:
        ConfigError: see `resolve`.
    """
    run = resolve(config)
    is_free = config.model.expert_weights == "auto" and config.lora.use_lora
    is_free = is_free and not run.shape.stored_as
    if not is_free or not run.shape.num_experts or estimate_run(run, hardware).fits:
        return run
    smallest = run
    for form in GENTLEST_FIRST[1:]:
        try:
            smaller = resolve(with_settings(config, expert_weights=form))
            if estimate_run(smaller, hardware).fits:
                return smaller
            smallest = smaller
        except ConfigError:  # a DeepSpeed file that does not split experts, widths of no form
            continue
    return smallest


def describe_form(run: ResolvedRun) -> str:
    """What is said of experts that are not kept as they came; nothing where they are."""
    kept = run.config.model.expert_weights
    if kept == "bf16":
        return ""
    if kept == "base":
        return f"routed experts are frozen and kept as the base has them ({run.shape.stored_as})"
    gentler = " or ".join(GENTLEST_FIRST[: GENTLEST_FIRST.index(kept)])
    return (
        f"routed experts are frozen and kept in {kept}; --expert_weights {gentler} is more "
        "accurate and takes more memory"
    )
