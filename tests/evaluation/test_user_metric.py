"""A metric of the user's own sees answers taken apart; what is wrong with it is said."""

from pathlib import Path

import pytest

from hunyuan_train.config.rules.evaluation import check_metric_file, split_metric
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.scoring import Question
from hunyuan_train.evaluation.user_metric import load_metric, measure
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.shipped import TINY_TOKENIZER

METRIC = """
def score(answers):
    right = [one["answer"]["content"] == one["reference"]["content"] for one in answers]
    thinking = [bool(one["answer"]["reasoning_content"]) for one in answers]
    return {"right": sum(right) / len(right), "thinking": sum(thinking)}

def length(answers):
    assert all(one["prompt"] == "" and one["well_formed"] for one in answers)
    return -sum(len(one["output"]) for one in answers) / len(answers)

def calls(answers):
    return sum(len(one["answer"]["tool_calls"]) for one in answers)

def broken(answers):
    return answers[99]

def words(answers):
    return "good"

def endless(answers):
    return float("inf")
"""
CALL = '<tool_calls>[{"name": "f", "arguments": {"a": 1}}]</tool_calls>'
TOOL = {"type": "function", "function": {"name": "f"}}


def tagged(content: str, thoughts: str = "") -> str:
    return HUNYUAN_A13B.answers.write(thoughts, content)


@pytest.fixture
def metric(tmp_path: Path) -> Path:
    path = tmp_path / "metric.py"
    path.write_text(METRIC)
    return path


def run(path: Path, name: str) -> dict[str, float]:
    setting = f"{path}:{name}"
    questions = [
        Question("fast", [], tagged("A"), HUNYUAN_A13B),
        Question("slow", [], tagged("B", "t"), HUNYUAN_A13B),
        Question("fast", [], tagged(CALL), HUNYUAN_A13B, (TOOL,)),
    ]
    outputs = [tagged("A"), tagged("C", "t"), tagged(CALL)]
    words = load_tokenizer(TINY_TOKENIZER)
    return measure(load_metric(setting), questions, outputs, words, setting=setting)


def test_one_number_or_several_are_logged_by_name(metric: Path) -> None:
    assert run(metric, "score") == {"eval_metric_right": 2 / 3, "eval_metric_thinking": 1}
    assert run(metric, "calls") == {"eval_metric": 1}
    lengths = [len(tagged("A")), len(tagged("C", "t")), len(tagged(CALL))]
    assert run(metric, "length") == {"eval_metric": -sum(lengths) / 3}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "IndexError"),
        ("words", "returned 'good'"),
        ("endless", "returned inf"),
        ("missing", "no function missing"),
    ],
)
def test_what_fails_is_named(metric: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(metric, name)


def test_a_file_is_checked_before_the_run_and_not_run(metric: Path, tmp_path: Path) -> None:
    check_metric_file(f"{metric}:score")
    with pytest.raises(ConfigError, match=r"no function other .functions: score, length"):
        check_metric_file(f"{metric}:other")
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.py, seen from "):
        check_metric_file(f"{tmp_path}/gone.py:score")
    metric.write_text("from math import sqrt as root\nscore = len\n")
    for name in ("root", "score"):  # a function is not always written where it is named
        check_metric_file(f"{metric}:{name}")
    metric.write_text("raise SystemExit\ndef score(answers): return 1\n")
    check_metric_file(f"{metric}:score")
    metric.write_text("def score(:\n")
    with pytest.raises(ConfigError, match="cannot be read as Python"):
        check_metric_file(f"{metric}:score")
    for setting in ("metric.py", "metric:score", "metric.py:", "metric.py:a b"):
        with pytest.raises(ConfigError, match=r"such as metric\.py:score"):
            split_metric(setting)
