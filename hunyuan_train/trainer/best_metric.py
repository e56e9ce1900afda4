"""Which evaluation is the best so far, by metric_for_best_model, and when that ends a run."""

from collections.abc import Sequence
from dataclasses import replace

from hunyuan_train.config.evaluation_schema import EvaluationConfig
from hunyuan_train.config.rules.evaluation import LOSS_METRICS, PREFERENCE_METRICS, is_lower_better
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.losses import list_sources, name_losses
from hunyuan_train.json_lines import Numbers
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.trainer.state import TrainerState


def check_best_metric(
    config: EvaluationConfig, objective: Objective, batches: Sequence[Batch]
) -> None:
    """Refuse the name of a loss that the objective does not have."""
    name = config.metric_for_best_model
    means = objective.complete(dict.fromkeys(objective.groups, 0.0))
    means |= {f"loss/{source}": 0.0 for source in list_sources(batches) if source}
    known = name_losses(means, has_perplexity=objective.has_perplexity)
    if name.startswith((*LOSS_METRICS, *PREFERENCE_METRICS)) and name not in known:
        raise ConfigError(f"metric_for_best_model is {name}; there are {', '.join(known)}")


def note_evaluation(
    config: EvaluationConfig, state: TrainerState, numbers: Numbers
) -> TrainerState:
    """Remember the best evaluation, and how many have followed it.

    Raises:
        ConfigError: the evaluation did not report metric_for_best_model.
    """
    name = config.metric_for_best_model
    if name not in numbers:
        found = ", ".join(sorted(one for one in numbers if one.startswith("eval_")))
        raise ConfigError(f"metric_for_best_model is {name}; this data gives {found}")
    value = numbers[name]
    best = state.best_value
    if best is not None and (value >= best if is_lower_better(name) else value <= best):
        return replace(state, num_worse=state.num_worse + 1)
    return replace(state, best_value=value, best_step=state.step, num_worse=0)


def has_stalled(config: EvaluationConfig, state: TrainerState) -> bool:
    """Whether early stopping ends the run here."""
    return 0 < config.early_stopping_patience <= state.num_worse
