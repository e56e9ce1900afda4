"""When what happens: the learning rate of each step, and what is due after it.

All are pure functions of the step, so that a resumed run needs no state for them.
"""

from collections.abc import Iterator
from math import ceil, cos, pi

from hunyuan_train.config.rules.logs import profiled_steps
from hunyuan_train.config.schema import OptimizerConfig, RunConfig, TrainConfig
from hunyuan_train.config.settings import FIELDS, read_setting, with_settings
from hunyuan_train.errors import ConfigError

# Settings that are steps, or below 1 a share of the run.
SHARES = [name for name, field in FIELDS.items() if field.metadata["form"] == "share"]
ROUNDING = 1e-9  # 0.07 of 100 steps are 7, and not the 8 above 7.000000000000001
FEW_STEPS = 10  # fewer, and a run hardly follows its schedule at all


def learning_rate_at(step: int, *, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    It rises linearly over the warm-up (never from an idle step at 0), then follows the scheduler
    down to `min_lr` (cosine_with_min_lr, wsd) or 0 (cosine, linear).
    """
    peak = config.learning_rate
    warmup = num_warmup_steps(total_steps, config)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    match config.lr_scheduler_type:
        case "cosine_with_min_lr":
            return config.min_lr + (peak - config.min_lr) * (1 + cos(pi * progress)) / 2
        case "cosine":
            return peak * (1 + cos(pi * progress)) / 2
        case "linear":
            return peak * (1 - progress)
        case "wsd":
            decay_steps = max(1, round(total_steps * config.wsd_decay_ratio))
            remaining = min(1.0, (total_steps - step) / decay_steps)
            return config.min_lr + (peak - config.min_lr) * remaining
        case "constant" | "constant_with_warmup":
            return peak


def count_steps(config: TrainConfig, *, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole run."""
    if config.max_steps > 0:
        return config.max_steps
    return ceil(config.num_train_epochs * steps_per_epoch)


def num_warmup_steps(total_steps: int, config: OptimizerConfig) -> int:
    """Steps in which the learning rate rises."""
    by_ratio = ceil(config.warmup_ratio * total_steps - ROUNDING)
    return whole_steps(config.warmup_steps, total_steps) or by_ratio


def whole_steps(steps: float, total_steps: int) -> int:
    """A number of steps that may be given as a share of the run; a share is rounded up."""
    return ceil(steps * total_steps - ROUNDING) if steps < 1 else round(steps)


def in_whole_steps(config: RunConfig, total_steps: int) -> RunConfig:
    """The settings of a run whose length is known: a share of it becomes a number of steps."""
    values = {name: read_setting(config, name) for name in SHARES}
    whole = {name: whole_steps(value, total_steps) for name, value in values.items()}
    return with_settings(config, **whole)


def check_warmup(config: RunConfig, total_steps: int) -> None:
    """Refuse a warm-up as long as the run.

    Raises:
        ConfigError: the learning rate would never reach its top.
    """
    steps, ratio = config.optimizer.warmup_steps, config.optimizer.warmup_ratio
    name, value = ("warmup_steps", steps) if steps else ("warmup_ratio", ratio)
    is_endless = value >= total_steps if name == "warmup_steps" and value >= 1 else value == 1
    if is_endless:
        raise ConfigError(
            f"{name} is {value:g} and the run has {total_steps} steps: the learning rate would "
            f"never reach its top; lower {name}, such as --warmup_steps 0.03 (a share of the run)"
        )


def describe_schedule(config: RunConfig, total_steps: int, *, has_evaluation: bool) -> str:
    """How often a run evaluates, saves and logs, and how long it warms up."""
    whole = in_whole_steps(config, total_steps)
    evaluated = f"evaluated {_describe_interval(whole.evaluation.eval_steps, total_steps)}, "
    warmup = num_warmup_steps(total_steps, config.optimizer)
    return (
        f"{evaluated if has_evaluation else 'no evaluation, '}"
        f"saved {_describe_interval(whole.checkpoints.save_steps, total_steps)}; "
        f"{warmup:,} step{'' if warmup == 1 else 's'} of warm-up"
    )


def _describe_interval(interval: float, total_steps: int) -> str:
    is_repeated = 0 < interval < total_steps
    every = "every step" if interval == 1 else f"every {interval:,} steps and at the end"
    return every if is_repeated else "at the end"


def find_idle_settings(
    config: RunConfig, total_steps: int, *, has_evaluation: bool
) -> Iterator[str]:
    """Say which settings of a schedule never come into play in a run of so many steps."""
    train = config.train
    if total_steps < FEW_STEPS and train.max_steps < 0:
        yield (
            f"the run has {total_steps} steps only; a lower gradient_accumulation_steps (it is "
            f"{train.gradient_accumulation_steps}) or a higher num_train_epochs gives more"
        )
    whole = in_whole_steps(config, total_steps)
    has = f"and the run has {total_steps} steps"
    eval_steps, save_steps = whole.evaluation.eval_steps, whole.checkpoints.save_steps
    if has_evaluation and eval_steps > 1 and eval_steps >= total_steps:
        yield (
            f"eval_steps is {eval_steps} {has}: it is evaluated at its end alone; --eval_steps 0.1 "
            "evaluates it ten times"
        )
    if save_steps > 1 and save_steps >= total_steps:
        yield (
            f"save_steps is {save_steps} {has}: nothing is saved before its end; --save_steps 0.2 "
            "saves it five times"
        )
    if whole.logs.logging_steps > total_steps:
        yield f"logging_steps is {whole.logs.logging_steps} {has}: only its last step is logged"
    yield from _find_idle_warmup(config.optimizer, total_steps)
    yield from _find_idle_watches(whole, total_steps, has)


def _find_idle_warmup(optimizer: OptimizerConfig, total_steps: int) -> Iterator[str]:
    name = "warmup_steps" if optimizer.warmup_steps else "warmup_ratio"
    share = optimizer.warmup_steps or optimizer.warmup_ratio
    if 0 < share < 1 and share * total_steps < 1 - ROUNDING:
        yield (
            f"{name} is {share:g} and the run has {total_steps} steps: the warm-up would be less "
            "than a step, and is one"
        )


def _find_idle_watches(whole: RunConfig, total_steps: int, has: str) -> Iterator[str]:
    """Of what needs several evaluations, or a step that never comes."""
    patience, eval_steps = whole.evaluation.early_stopping_patience, whole.evaluation.eval_steps
    if patience and eval_steps and patience >= total_steps // eval_steps:
        yield (
            f"early_stopping_patience is {patience} {has}, evaluated every {eval_steps}: it ends "
            "before it could be stopped early"
        )
    guardian = whole.guardian
    if guardian.router_guardian != "off" and guardian.router_check_steps > total_steps:
        yield f"router_check_steps is {guardian.router_check_steps} {has}: no router is looked at"
    profile = profiled_steps(whole.logs.profile)
    if profile and profile[0] > total_steps:
        yield f"profile is {whole.logs.profile} {has}: nothing is traced"
