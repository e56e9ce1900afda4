"""Rules about what is evaluated, and what follows from it."""

import ast
import re
from pathlib import Path

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError

NUMBER_OF_TOKENS = re.compile(r"[0-9]{1,9}")
MIN_NEEDLE_LENGTH = 256  # tokens; the question and the facts take about 100
LOSS_METRICS = ("eval_loss", "eval_perplexity")
PREFERENCE_METRICS = ("eval_rewards/", "eval_logps/", "eval_lengths/", "eval_kl")
ANSWER_METRICS = (
    *("eval_valid_format", "eval_valid_format_fast", "eval_valid_format_slow"),
    *("eval_exact_match", "eval_exact_match_fast", "eval_exact_match_slow"),
    *("eval_set_f1", "eval_set_f1_fast", "eval_set_f1_slow"),
    *("eval_mode_leak_fast", "eval_mode_leak_slow"),
    *("eval_call_accuracy", "eval_call_exact", "eval_call_name", "eval_call_parse_errors"),
    *("eval_call_accuracy_none", "eval_call_accuracy_one", "eval_call_accuracy_many"),
    *("eval_call_undue", "eval_call_missed"),
)
LOWER_IS_BETTER = (
    *LOSS_METRICS,
    *("eval_mode_leak", "eval_kl", "eval_lengths/"),
    *("eval_call_parse_errors", "eval_call_undue", "eval_call_missed"),
)


def is_lower_better(metric: str) -> bool:
    """Whether a metric falls as a model gets better."""
    return metric.startswith(LOWER_IS_BETTER)


def split_metric(setting: str, called: str = "eval_metric") -> tuple[str, str]:
    """File and function of `eval_metric`, or of a flag that is called otherwise.

    Raises:
        ConfigError: it does not name both.
    """
    path, separator, name = setting.rpartition(":")
    if not (separator and path.endswith(".py") and name.isidentifier()):
        raise ConfigError(
            f"{called} is {setting}; give a file and a function in it, such as metric.py:score"
        )
    return path, name


def check_user_metric(run: ResolvedRun) -> None:
    """Refuse a metric that is not there, or has no answers to judge; nothing of it is run."""
    setting = run.config.evaluation.eval_metric
    if not setting:
        return
    if not run.config.evaluation.eval_generate:
        raise ConfigError(
            f"eval_metric is {setting}, which judges answers; let the model answer with "
            "--eval_generate 64"
        )
    check_metric_file(setting)


def check_metric_file(setting: str, called: str = "eval_metric") -> None:
    """Refuse a file without the function that a setting names, without running it.

    Args:
        setting: its value.
        called: its name to the user.

    Raises:
        ConfigError: saying what is missing.
    """
    path, name = split_metric(setting, called)
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{called} is {setting}, and there is no file {path}, seen from {Path.cwd()}; give the "
            "path of a file of Python"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{called} is {setting}, and {path} cannot be read as Python: {error}; fix the file"
        ) from error
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    assigned = _list_assigned(tree)
    if name not in (*functions, *assigned):
        found = ", ".join(functions) or "none"
        raise ConfigError(
            f"{called} is {setting}, and {path} has no function {name} (functions: {found}); "
            "name one of its functions"
        )
    # What a decorator or another name makes of a function is known when the file is run.
    is_known = name in functions and name not in assigned and not functions[name].decorator_list
    if is_known and (reason := _refuse_arguments(functions[name].args)):
        raise ConfigError(explain_arguments(setting, reason, called))


def explain_arguments(setting: str, reason: str, called: str = "eval_metric") -> str:
    """That the function of a setting cannot be called with what it is called with.

    Args:
        setting: its value.
        reason: why it cannot.
        called: its name to the user.
    """
    name = split_metric(setting, called)[1]
    return (
        f"{called} is {setting}, and its function takes one argument, the list of answers: "
        f"{reason}; define it as `def {name}(answers)`, and give other arguments a default"
    )


def _refuse_arguments(arguments: ast.arguments) -> str:
    """Why a function cannot be called with one list; "" where it can."""
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required_by_name = [one.arg for one, default in named if default is None]
    if not (positional or arguments.vararg):
        return "this one takes none"
    missing = [*required[1:], *required_by_name]
    return f"this one wants {', '.join(missing)} besides" if missing else ""


def _list_assigned(tree: ast.Module) -> list[str]:
    """Names that a module assigns or imports, which may be functions, too."""
    targets = [target for one in tree.body if isinstance(one, ast.Assign) for target in one.targets]
    imported = [
        alias.asname or alias.name
        for one in tree.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    ]
    return [one.id for one in targets if isinstance(one, ast.Name)] + imported


def check_evaluation_data(run: ResolvedRun) -> None:
    """Refuse to evaluate on nothing."""
    data, evaluation = run.config.data, run.config.evaluation
    wanting = {
        "eval_steps": evaluation.eval_steps,
        "eval_generate": evaluation.eval_generate,
        "save_best": run.config.checkpoints.save_best,
        "early_stopping_patience": evaluation.early_stopping_patience,
    }
    for name, value in wanting.items():
        if value and not (data.eval_data_file or data.eval_fraction):
            raise ConfigError(
                f"{name} is {value}, but there is nothing to evaluate on; set "
                "--eval_data_file, or hold out a share with --eval_fraction 0.05"
            )


def check_early_stopping(run: ResolvedRun) -> None:
    """Refuse to stop early by evaluations that come too late for it."""
    evaluation = run.config.evaluation
    if evaluation.early_stopping_patience and not evaluation.eval_steps:
        raise ConfigError(
            f"early_stopping_patience is {evaluation.early_stopping_patience} and eval_steps 0, so "
            "there is one evaluation only, at the end; set --eval_steps"
        )


def check_best_metric(run: ResolvedRun) -> None:
    """Refuse to go by a number that no evaluation gives."""
    metric = run.config.evaluation.metric_for_best_model
    needs_answers = metric in ANSWER_METRICS or metric.startswith("eval_call_accuracy/")
    if metric.startswith("eval_metric"):
        if not run.config.evaluation.eval_metric:
            raise ConfigError(
                f"metric_for_best_model is {metric}, a metric of your own; name its function with "
                "--eval_metric FILE.py:FUNCTION"
            )
        return
    is_sft = run.config.preferences.objective == "sft"
    known = LOSS_METRICS if is_sft else ("eval_loss", *PREFERENCE_METRICS)
    if not needs_answers and not metric.startswith(known):
        raise ConfigError(
            f"metric_for_best_model is {metric}; it must begin with one of "
            f"{', '.join(known)}, or be one of {', '.join(ANSWER_METRICS)}"
        )
    if needs_answers and not run.config.evaluation.eval_generate:
        raise ConfigError(
            f"metric_for_best_model is {metric}, which is a score of answers; let the model answer "
            "with --eval_generate 64"
        )


def check_best_checkpoint(run: ResolvedRun) -> None:
    """Refuse to keep the best checkpoint where none is known to be better."""
    if run.config.checkpoints.save_best and not run.config.evaluation.eval_steps:
        raise ConfigError(
            "save_best is true, but eval_steps is 0, so no checkpoint is known to be better than "
            "another; set --eval_steps"
        )


def check_needles(run: ResolvedRun) -> None:
    """Refuse lengths of texts that are none, or longer than what the model reads."""
    check_needles_fit(
        run.config.evaluation.needle_lengths,
        context_length=run.shape.context_length,
        model=run.config.model.model_name_or_path,
    )


def needle_lengths(text: str | None) -> list[int]:
    """Lengths of `--needle_lengths`, ascending.

    Raises:
        ConfigError: they are none.
    """
    words = text.split(",") if text is not None else []
    if not all(NUMBER_OF_TOKENS.fullmatch(word.strip()) for word in words) or any(
        int(word) < MIN_NEEDLE_LENGTH for word in words
    ):
        raise ConfigError(
            f"needle_lengths is {text}; give numbers of tokens of {MIN_NEEDLE_LENGTH} or more, "
            "such as 1024,4096,16384"
        )
    return sorted({int(word) for word in words})


def check_needles_fit(text: str | None, *, context_length: int, model: str) -> None:
    """Refuse texts that a model was not made to read.

    Args:
        text: the value of `--needle_lengths`.
        context_length: tokens that the model reads.
        model: its name, for the message.

    Raises:
        ConfigError: one is longer than its context.
    """
    if max(needle_lengths(text), default=0) > context_length:
        raise ConfigError(
            f"needle_lengths is {text}, and {model} reads {context_length} tokens; leave the "
            "longer ones out"
        )
