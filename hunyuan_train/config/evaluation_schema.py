"""The section `evaluation`: what is measured beside the training loss, and what that decides."""

from dataclasses import dataclass

from hunyuan_train.config.declare import Auto, check_bounds, free_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is measured beside the training loss, and which decisions use it."""

    eval_steps: int | float = free_setting(
        0,
        "evaluate every N steps, or below 1 after each such share of the run (0.1: ten times). "
        "0: only at the end, if there is eval data",
        low=0,
        form="share",
    )
    per_device_eval_batch_size: int = free_setting(
        1, "rows per process in an evaluation step", low=1, high=2**16
    )
    expert_loss_samples: int = free_setting(
        16,
        "held-out samples on which quantised experts are compared with the original base before "
        "the first step (0: none)",
        low=0,
        high=10**6,
    )
    eval_generate: int = free_setting(
        0,
        "let the model answer N held-out prompts before the first step and at each evaluation. "
        "Format, mode, exact match, set F1 and tool calls are scored. answers.jsonl keeps the "
        "answers",
        low=0,
        high=10**6,
    )
    eval_max_new_tokens: int = free_setting(
        512,
        "most tokens of such an answer. One whose thoughts are longer is cut, and counts as "
        "malformed",
        low=1,
        high=2**20,
    )
    eval_metric: str | None = free_setting(
        None,
        "a metric of your own, FILE.py:FUNCTION, over the answers of eval_generate. The function "
        "gets a list of parsed answers. It returns a number, or numbers by name. Higher is better",
    )
    metric_for_best_model: str = free_setting(
        "eval_loss",
        "the number that save_best and early stopping use: eval_loss_answer, eval_set_f1, "
        "eval_call_accuracy, eval_metric, eval_rewards/accuracies, eval_loss/FILE. For losses "
        "and mode leaks, lower is better",
    )
    early_stopping_patience: int = free_setting(
        0,
        "end training, as if complete, after this many evaluations in a row without a better "
        "metric_for_best_model (0: never)",
        low=0,
    )
    needle_lengths: str | None = free_setting(
        None,
        "needle-in-a-haystack test before the first step and after the last, in texts of so many "
        "tokens, such as 1024,4096,16384",
        form="list",
    )
    needle_number: int = free_setting(8, "number of texts of each length", low=1, high=10**5)
    sample_answers: bool | Auto = free_setting(
        "auto",
        "let the model answer two training prompts of at most 2,048 tokens at the end, for the "
        "report. auto: in at most a minute each. true: without that limit",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
