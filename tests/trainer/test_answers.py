"""Answers are judged by what a server would return of them; values by hand."""

from collections import Counter
from pathlib import Path

import pytest

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import DataConfig, TrainConfig
from hunyuan_train.data.cache import prepare_dataset
from hunyuan_train.data.tokenizer import load_tokenizer
from hunyuan_train.model.presets import TINY_TOKENIZER
from hunyuan_train.trainer.answers import (
    Judgement,
    Question,
    choose_questions,
    is_thinking,
    judge,
    score,
)
from hunyuan_train.trainer.evaluate import name_losses
from hunyuan_train.trainer.loop import Ending, has_stalled, note_evaluation
from hunyuan_train.trainer.state import TrainerState
from tests.conftest import REPOSITORY
from tests.looped import run_loop
from tests.ranks import run_ranks

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
    judged = judge(Question(mode, [], reference), output)
    is_well_formed, is_leaking, is_exact, set_f1 = expected
    assert judged == Judgement(mode, is_well_formed, is_leaking, is_exact, pytest.approx(set_f1))


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
        assert judge(question, question.reference) == Judgement(
            question.mode, is_well_formed=True, is_leaking=False, is_exact=True, set_f1=1.0
        )
        assert tokenizer.decode(question.prompt).endswith("<|extra_0|>")


@pytest.mark.parametrize(
    ("output", "expected"),
    [(fast("A"), False), (slow("A"), True), ("<think>hm</think>A", True), ("A", False)],
)
def test_thinking_is_seen_also_where_the_tags_are_wrong(output: str, expected: bool) -> None:
    assert is_thinking(output) == expected


def test_scores_are_means_over_all_and_over_each_mode() -> None:
    numbers = score(
        [
            Judgement("fast", True, False, True, 1.0),
            Judgement("fast", True, True, False, 0.5),
            Judgement("slow", False, True, False, 0.0),
        ]
    )
    assert numbers["eval_answers"] == 3
    assert numbers["eval_valid_format"] == pytest.approx(2 / 3)
    assert numbers["eval_exact_match"] == pytest.approx(1 / 3)
    assert numbers["eval_set_f1"] == pytest.approx(0.5)
    assert numbers["eval_set_f1_fast"] == pytest.approx(0.75)
    assert (numbers["eval_mode_leak_fast"], numbers["eval_mode_leak_slow"]) == (0.5, 1.0)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    numbers = name_losses({"all": 0.0, "fast": 1.0})
    assert numbers["eval_loss_fast"] == 1.0
    assert numbers["eval_perplexity"] == 1.0
    assert numbers["eval_perplexity_fast"] == pytest.approx(2.718281828)


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
    config = TrainConfig(metric_for_best_model=metric, early_stopping_patience=2)
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
    config = TrainConfig(metric_for_best_model="eval_loss_slow")
    with pytest.raises(ConfigError, match="this data gives eval_loss, eval_loss_fast"):
        note_evaluation(config, TrainerState(), {"eval_loss": 1.0, "eval_loss_fast": 1.0})


def test_a_stalled_run_is_complete_and_saved(tmp_path: Path) -> None:
    """Every batch is bad, so no weight moves and no evaluation is better than the first."""
    settings = {
        "max_steps": 9,
        "eval_steps": 1,
        "early_stopping_patience": 2,
        "max_bad_steps": 99,
        "save_best": True,
    }
    results = run_ranks(run_loop, 2, tmp_path, settings, range(9), None)
    for looped in results:
        assert looped.ending == Ending(is_complete=True, is_saved=True)
        assert looped.seen == [0, 1, 2]
    assert (tmp_path / "checkpoints" / "step-000003").exists()
