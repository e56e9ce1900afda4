"""Answers are scored by what a server would return of them; values by hand."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.rendering.prompt import encode_prompt, find_opening
from hunyuan_train.evaluation.scoring import (
    AnswerScore,
    Question,
    choose_questions,
    score_answer,
    summarize,
)
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import REPOSITORY
from tests.families.grammar.test_new_tokens import without_gaps

CALL = '<tool_calls>[{"name": "f", "arguments": {"b": 1, "a": 2}}]</tool_calls>'
SAME_CALL = '<tool_calls>[{"arguments": {"a": 2, "b": 1}, "name": "f"}]</tool_calls>'


def fast(content: str) -> str:
    return f"<think>\n\n</think>\n<answer>\n{content}\n</answer>"


def slow(content: str) -> str:
    return f"<think>\nwell\n</think>\n<answer>\n{content}\n</answer>"


@pytest.mark.parametrize(
    ("mode", "reference", "output", "expected"),
    [
        ("fast", fast("A"), fast(" A "), (True, False, True, 1.0)),
        ("fast", fast("A"), slow("A"), (True, True, True, 1.0)),
        ("slow", slow("A"), fast("A"), (True, True, True, 1.0)),
        ("slow", slow("A"), slow("B"), (True, False, False, 0.0)),
        # of {a, b, c} and {b, c, d, e}: two in common, 2 * 2 / (3 + 4)
        ("fast", fast("a, b; c"), fast("e\nb\u3001c\uff1bd"), (True, False, False, 4 / 7)),
        ("fast", fast("b;a"), fast("a;b"), (True, False, False, 1.0)),
        ("fast", fast("A"), "A", (False, False, True, 1.0)),
        ("fast", fast("A"), "<think>\nendless", (False, True, False, 0.0)),
        ("fast", fast(CALL), fast(SAME_CALL), (True, False, True, 1.0)),
        ("fast", fast(CALL), fast("f"), (True, False, False, 0.0)),
    ],
)
def test_an_answer_is_judged(
    mode: str, reference: str, output: str, expected: tuple[bool, bool, bool, float]
) -> None:
    scores = score_answer(Question(mode, [], reference, HUNYUAN_A13B), output)
    is_well_formed, is_leaking, is_exact, set_f1 = expected
    wanted = AnswerScore(mode, is_well_formed, is_leaking, is_exact, pytest.approx(set_f1))
    assert replace(scores, calls=None) == wanted
    assert (scores.calls is not None) == (CALL in reference)


@pytest.mark.parametrize(
    ("mode", "output", "expected"),
    [
        ("slow", "t{close}A", (True, False, True)),
        ("slow", "endless", (False, False, False)),  # cut in its thoughts
        ("slow", "{close}A", (True, True, True)),
        ("fast", "A", (True, False, True)),
        ("fast", "t{close}A", (False, True, False)),
    ],
)
def test_an_answer_goes_on_where_its_prompt_ends(
    mode: str, output: str, expected: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(without_gaps(tmp_path / "words"))
    asked = [{"role": "user", "content": "Q"}]
    prompt = encode_prompt(asked, tokenizer, mode=mode)
    close = "</think:opensource>"
    reference = {"fast": "A", "slow": f"r{close}A"}[mode]
    opening = find_opening(prompt, tokenizer)
    question = Question(mode, prompt, reference, tokenizer.grammar, opening=opening)
    score = score_answer(question, output.format(close=close))
    assert (score.is_well_formed, score.is_leaking, score.is_exact) == expected


@pytest.mark.parametrize(
    ("number", "num_fast", "num_slow"), [(2, 1, 1), (5, 2, 3), (8, 4, 4), (99, None, None)]
)
def test_questions_of_both_modes_are_the_datas_own(
    tmp_path: Path, number: int, num_fast: int | None, num_slow: int | None
) -> None:
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    path = str(REPOSITORY / "data" / "tiny_eval.jsonl")
    config = DataConfig(train_data_file=path, cache_dir=str(tmp_path), max_seq_length=1024)
    dataset = prepare_dataset(config, tokenizer)
    questions = choose_questions(dataset, tokenizer, number)
    by_mode = Counter(question.mode for question in questions)
    summary = dataset.summary
    expected = (num_fast or summary.num_fast, num_slow or summary.num_slow)
    assert (by_mode["fast"], by_mode["slow"]) == expected
    for question in questions:
        score = score_answer(question, question.reference)
        assert score.calls is None or (score.calls.is_exact and score.calls.is_right)
        assert replace(score, calls=None) == AnswerScore(
            question.mode, is_well_formed=True, is_leaking=False, is_exact=True, set_f1=1.0
        )
        assert tokenizer.decode(question.prompt).endswith("<|extra_0|>")


def test_scores_are_means_over_all_and_over_each_mode() -> None:
    numbers = summarize(
        [
            AnswerScore("fast", True, False, True, 1.0),
            AnswerScore("fast", True, True, False, 0.5),
            AnswerScore("slow", False, True, False, 0.0),
        ]
    )
    assert numbers["eval_answers"] == 3
    assert numbers["eval_valid_format"] == pytest.approx(2 / 3)
    assert numbers["eval_exact_match"] == pytest.approx(1 / 3)
    assert numbers["eval_set_f1"] == pytest.approx(0.5)
    assert numbers["eval_set_f1_fast"] == pytest.approx(0.75)
    assert (numbers["eval_mode_leak_fast"], numbers["eval_mode_leak_slow"]) == (0.5, 1.0)
