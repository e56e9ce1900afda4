"""Which evaluation is the best, and when a run ends because none has been better."""

import pytest

from hunyuan_train.config.evaluation_schema import EvaluationConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.best_metric import check_best_metric, has_stalled, note_evaluation
from hunyuan_train.trainer.state import TrainerState


@pytest.mark.parametrize(
    ("metric", "values", "best_step", "stops_at"),
    [
        ("eval_loss", [3.0, 2.0, 2.5, 2.0, 1.0], 2, 4),
        ("eval_set_f1", [0.1, 0.4, 0.4, 0.3], 2, 4),
        ("eval_mode_leak_fast", [0.5, 0.2, 0.1], 3, None),
    ],
)
def test_training_ends_after_evaluations_without_a_better_one(
    metric: str, values: list[float], best_step: int, stops_at: int | None
) -> None:
    config = EvaluationConfig(metric_for_best_model=metric, early_stopping_patience=2)
    state, stopped = TrainerState(), None
    for step, value in enumerate(values, start=1):
        state = note_evaluation(config, TrainerState(step, *rest_of(state)), {metric: value})
        if has_stalled(config, state):
            stopped = step
            break
    assert (state.best_step, stopped) == (best_step, stops_at)


def rest_of(state: TrainerState) -> tuple:
    return state.position, state.tokens_seen, state.best_value, state.best_step, state.num_worse


def test_a_number_that_the_data_does_not_give_is_named() -> None:
    config = EvaluationConfig(metric_for_best_model="eval_loss_slow")
    with pytest.raises(ConfigError, match="this data gives eval_loss, eval_loss_fast"):
        note_evaluation(config, TrainerState(), {"eval_loss": 1.0, "eval_loss_fast": 1.0})


def test_a_loss_that_the_objective_does_not_have_is_named_before_the_first_step() -> None:
    check_best_metric(EvaluationConfig(metric_for_best_model="eval_perplexity_think"), SFT, [])
    with pytest.raises(ConfigError, match="eval_loss_quick; there are eval_loss, eval_loss_f"):
        check_best_metric(EvaluationConfig(metric_for_best_model="eval_loss_quick"), SFT, [])
