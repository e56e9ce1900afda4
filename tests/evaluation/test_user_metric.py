"""A metric of the user's own sees answers taken apart; what is wrong with it is said."""

import json
from pathlib import Path

import pytest

from hunyuan_train.config.rules.evaluation import check_metric_file, split_metric
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.scoring import Question
from hunyuan_train.evaluation.user_metric import load_metric, measure
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import start_train

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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "this one takes none"),
        ("answers, tokenizer", "this one wants tokenizer besides"),
        ("answers, /, model, *, rows", "this one wants model, rows besides"),
        ("*, answers=()", "this one takes none"),
    ],
)
def test_a_function_that_does_not_take_answers_is_refused_before_the_run(
    metric: Path, arguments: str, reason: str
) -> None:
    metric.write_text(f"def score({arguments}):\n    return 1\n")
    rule = "its function takes one argument, the list of answers"
    remedy = r"define it as `def score\(answers\)`, and give other arguments a default"
    with pytest.raises(ConfigError, match=f"{rule}: {reason}; {remedy}"):
        check_metric_file(f"{metric}:score")
    with pytest.raises(ConfigError, match=f"{rule}: Python says '.*'; {remedy}"):
        load_metric(f"{metric}:score")


@pytest.mark.parametrize(
    "code",
    [
        "def score(answers, /, weight=1, *, rows=()): return 1",
        "def score(*answers): return 1",
        "def score(**more): return 1\nscore = len",  # the last one counts
        "from functools import partial\ndef both(model, answers): return 1\n"
        "score = partial(both, 'model')",
        "def give(function): return len\n@give\ndef score(): return 1",
        "score = max",  # of which Python does not say what it takes
    ],
)
def test_a_function_that_takes_answers_is_taken_however_it_is_written(
    metric: Path, code: str
) -> None:
    metric.write_text(code)
    check_metric_file(f"{metric}:score")
    load_metric(f"{metric}:score")


def test_what_cannot_be_told_without_running_the_file_is_told_when_it_is_run(metric: Path) -> None:
    metric.write_text("def none(): return 1\nscore = none\n")
    check_metric_file(f"{metric}:score")
    with pytest.raises(ConfigError, match="Python says 'too many positional arguments'"):
        load_metric(f"{metric}:score")


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


@pytest.mark.slow
def test_a_run_judges_by_the_metric_and_one_without_answers_ends_before_the_first_step(
    metric: Path, tmp_path: Path
) -> None:
    metric.write_text("def none(): return 1\nscore = none\ndef count(rows): return len(rows)\n")
    flags = (
        *("--recipe", "tiny", "--max_steps", "2", "--eval_steps", "1", "--eval_generate", "3"),
        *("--eval_max_new_tokens", "4", "--export", "false", "--save_strategy", "no"),
    )
    outputs = []
    for name in ("score", "count"):
        folder = tmp_path / name
        setting = ("--eval_metric", f"{metric}:{name}", "--output_dir", str(folder))
        outputs.append(start_train(*flags, *setting, cwd=tmp_path))
    assert outputs[0].returncode != 0
    assert "Python says 'too many positional arguments'" in outputs[0].stderr
    assert not (tmp_path / "score/metrics.jsonl").exists()
    assert outputs[1].returncode == 0, outputs[1].stderr
    rows = [json.loads(row) for row in (tmp_path / "count/metrics.jsonl").read_text().splitlines()]
    judged = [row["eval_metric"] for row in rows if "eval_metric" in row]
    assert judged == [3, 3, 3]  # before the first step, too
