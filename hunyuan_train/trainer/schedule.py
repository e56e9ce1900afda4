"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from math import ceil, cos, pi

from hunyuan_train.config.schema import OptimizerConfig, TrainConfig


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
    return config.warmup_steps or ceil(total_steps * config.warmup_ratio)
