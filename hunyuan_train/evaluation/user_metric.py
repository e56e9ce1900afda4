"""A metric of the user's own, `FILE.py:FUNCTION`, over answers that are taken apart.

The function gets a list of answers, each a dictionary:

    mode       "fast" or "slow"
    prompt     text of the prompt, control tokens and all
    reference  the data's answer as a message of the OpenAI interface: content, reasoning_content,
               tool_calls
    answer     the model's, in the same form
    output     the model's, as it was generated
    tools      functions on offer, in OpenAI's form
    well_formed  whether the answer follows the grammar

It returns a number, which is logged as `eval_metric`, or numbers by name, as `eval_metric_NAME`.
More is better: where less is, return the negative.
"""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from hunyuan_train.config.rules.evaluation import explain_arguments, split_metric
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.scoring import Question
from hunyuan_train.families.grammar.tokenizer import Tokenizer

Metric = Callable[[list[dict[str, Any]]], Any]


def load_metric(setting: str) -> Metric:
    """The function that a setting names.

    Raises:
        ConfigError: the file cannot be run, or has no such function, or one that does not take
            answers.
    """
    path, name = split_metric(setting)
    spec = importlib.util.spec_from_file_location(f"user_metric_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"eval_metric is {setting}, and {path} is no file of Python; give one")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(f"eval_metric: {path} fails with {_name(error)}; fix it") from error
    function = vars(module).get(name)
    if not callable(function):
        raise ConfigError(f"eval_metric is {setting}, and {path} has no function {name}; add it")
    try:
        inspect.signature(function).bind([])
    except TypeError as error:
        raise ConfigError(explain_arguments(setting, f"Python says '{error}'")) from error
    except ValueError:  # of some built-in functions Python does not know what they take
        pass
    return function


def measure(
    metric: Metric,
    questions: Sequence[Question],
    outputs: Sequence[str],
    tokenizer: Tokenizer,
    *,
    setting: str,
) -> dict[str, float]:
    """What the metric says of some answers, under the names it is logged by.

    Raises:
        ConfigError: it fails, or returns no numbers.
    """
    answers = [
        describe(question, output, tokenizer)
        for question, output in zip(questions, outputs, strict=True)
    ]
    try:
        value = metric(answers)
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(
            f"eval_metric: {setting} fails with {_name(error)} on {len(answers)} answers; fix it"
        ) from error
    named = value if isinstance(value, dict) else {"": value}
    numbers = {}
    for name, number in named.items():
        is_number = isinstance(number, int | float) and isfinite(number)
        if not is_number:
            raise ConfigError(
                f"eval_metric: {setting} returned {number!r}; return a number, or numbers by name"
            )
        numbers[f"eval_metric_{name}" if name else "eval_metric"] = float(number)
    return numbers


def describe(question: Question, output: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """One answer as the function gets it."""
    parsed = question.parse(output)
    return {
        "mode": question.mode,
        "prompt": tokenizer.decode(question.prompt),
        "reference": question.parse(question.reference).to_message(),
        "answer": parsed.to_message(),
        "output": output,
        "tools": list(question.tools),
        "well_formed": parsed.is_well_formed,
    }


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
