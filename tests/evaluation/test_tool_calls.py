"""Calls are scored by name, exactly, and by type and value; cases by hand."""

import json
from pathlib import Path

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.records.read_back import write_answers
from hunyuan_train.evaluation.scoring import choose_questions, score_answer, summarize
from hunyuan_train.evaluation.tool_calls import CallScore, are_alike, score_calls, summarize_calls
from hunyuan_train.evaluation.trajectories import (
    read_trajectories,
    summarize_trajectories,
    walk_trajectories,
)
from hunyuan_train.families.grammar.dialogue import ToolCall, dump_json
from hunyuan_train.families.grammar.find import find_grammar, load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.interface import ParsedOutput
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.families.grammar.hy_v3.stand_in import special_ids, write_stand_in

NOW = "2026-03-02 09:15:00"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 1},
        "price": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")
]


def _call(name="f", **arguments) -> ToolCall:
    return ToolCall(name, dump_json(arguments))


@pytest.mark.parametrize(
    ("wanted", "given", "is_alike"),
    [
        ({"city": "New York"}, {"city": "new york"}, True),
        ({"city": "April 1, 2024"}, {"city": "April 1 2024"}, True),
        ({"city": "Rome"}, {"city": "Roma"}, False),
        ({"city": "R", "days": 2}, {"city": "R", "days": 2.0}, False),
        ({"city": "R", "days": 2}, {"city": "R", "days": "2"}, False),
        ({"city": "R", "days": 1}, {"city": "R"}, True),
        ({"city": "R"}, {"city": "R", "days": 1}, True),
        ({"city": "R"}, {"city": "R", "days": 3}, False),
        ({"city": "R", "price": 2.0}, {"city": "R", "price": 2}, True),
        ({"city": "R", "price": 1}, {"city": "R", "price": True}, False),
        ({"city": "R", "tags": ["A b"]}, {"city": "R", "tags": ["ab"]}, True),
        ({"city": "R", "tags": ["a", "b"]}, {"city": "R", "tags": ["b", "a"]}, False),
        ({"city": "R", "x": None}, {"city": "R", "x": None}, True),
        ({"city": "R"}, {"city": "R", "other": 1}, False),
        ({"city": {"a": 1}}, {"city": {"a": 1}}, True),
    ],
)
def test_arguments_are_compared_by_type_and_value(wanted, given, is_alike):
    assert are_alike(_call(**wanted), _call(**given), TOOLS) == is_alike
    assert not are_alike(_call(**wanted), _call("g", **given), TOOLS)


def _score(wanted: list[ToolCall], given: list[ToolCall], output="") -> CallScore:
    answers = [ParsedOutput(None, None, tuple(calls)) for calls in (wanted, given)]
    return score_calls(*answers, output, HUNYUAN_A13B, TOOLS)


A, B = _call(city="Rome"), _call("g", city="Oslo")


@pytest.mark.parametrize(
    ("wanted", "given", "output", "flags"),  # parsed, named, right, exact
    [
        ([], [], "hello", (True, True, True, True)),
        ([], [A], "", (True, False, False, False)),
        ([A], [], "hello", (True, False, False, False)),
        ([A], [A], "", (True, True, True, True)),
        ([A], [_call(city="ROME")], "", (True, True, True, False)),
        ([A], [_call(city="Oslo")], "", (True, True, False, False)),
        ([A], [A, A], "", (True, False, False, False)),
        ([A, B], [B, A], "", (True, True, True, False)),
        ([A, B], [A], "", (True, False, False, False)),
        ([A], [], '<tool_calls>[{"name": "f"', (False, False, False, False)),
        ([], [], "<tool_calls>oh", (False, False, False, False)),
    ],
)
def test_calls_of_an_answer_are_scored(wanted, given, output, flags):
    score = _score(wanted, given, output)
    assert (score.is_parsed, score.is_named, score.is_right, score.is_exact) == flags


def test_numbers_are_means_by_what_was_due_and_by_tool():
    scores = [
        _score([], []),
        _score([], [A]),
        _score([A], [A]),
        _score([A, B], [A]),
        _score([B], []),
    ]
    assert summarize_calls(scores) == {
        "eval_calls": 5,
        "eval_call_accuracy": 2 / 5,
        "eval_call_exact": 2 / 5,
        "eval_call_name": 2 / 5,
        "eval_call_parse_errors": 0,
        "eval_call_accuracy_none": 1 / 2,
        "eval_call_accuracy_one": 1 / 2,
        "eval_call_accuracy_many": 0,
        "eval_call_undue": 1 / 2,
        "eval_call_missed": 1 / 3,
        "eval_call_accuracy/f": 1,
        "eval_call_accuracy/g": 0,
    }
    assert summarize_calls([]) == {}


def _record(mode: str, *calls: dict, answer="done") -> dict:
    turns: list[dict] = [{"role": "user", "content": "q"}]
    for number, call in enumerate(calls):
        turns.append({"role": "assistant", "content": "", "tool_calls": [{"function": call}]})
        turns.append({"role": "tool", "content": f"result {number}"})
    turns.append({"role": "assistant", "content": answer})
    if mode == "slow":
        turns = [
            one | ({"reasoning_content": "t"} if one["role"] == "assistant" else {})
            for one in turns
        ]
    return {"mode": mode, "now": NOW, "tools": TOOLS, "messages": turns}


@pytest.fixture(params=["a13b", "hy3"])
def words(request, tmp_path):
    if request.param == "a13b":
        return load_tokenizer(TINY_TOKENIZER)
    return load_tokenizer(write_stand_in(tmp_path / "hy3", special_ids()))


@pytest.fixture
def held_out(tmp_path) -> Path:
    rome, oslo = ({"name": "f", "arguments": {"city": city}} for city in ("Rome", "Oslo"))
    records = [
        _record("fast", rome),
        _record("slow", rome, oslo),
        _record("fast", answer="no call"),
    ]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def test_questions_know_the_tools_that_their_prompt_offers(words, held_out, tmp_path):
    """Also where the right answer calls none: a call is then read as one, and undue."""
    config = DataConfig(
        train_data_file=str(held_out), cache_dir=str(tmp_path / "c"), max_seq_length=4096
    )
    questions = choose_questions(prepare_dataset(config, words), words, 99)
    assert all(list(question.tools) == TOOLS for question in questions)
    scores = [score_answer(one, one.reference) for one in questions]
    numbers = summarize(scores)
    assert (numbers["eval_calls"], numbers["eval_call_accuracy"]) == (len(questions), 1)
    (walk,) = read_trajectories(str(held_out), words, 1)
    calling = _write(walk, words)[0]
    undue = [score_answer(one, calling).calls for one in questions]
    kinds = [(one.kind, one.num_given, one.is_right) for one in undue if one is not None]
    assert ("none", 1, False) in kinds


def test_calls_are_asked_for_where_a_sample_trains_all_answers_of_a_dialogue(tmp_path):
    words = load_tokenizer(TINY_TOKENIZER)
    record = _record("fast", {"name": "f", "arguments": {"city": "Rome"}})
    path = tmp_path / "held_out.jsonl"
    path.write_text(f"{json.dumps(record)}\n" * 4)
    config = DataConfig(
        train_data_file=str(path),
        cache_dir=str(tmp_path / "c"),
        max_seq_length=4096,
        history="keep",
    )
    dataset = prepare_dataset(config, words)
    assert len(dataset.samples) == 4
    questions = choose_questions(dataset, words, 4)
    scores = [score_answer(one, one.reference) for one in questions]
    assert [score.calls.kind for score in scores] == ["none", "one", "none", "one"]
    assert all(score.calls.is_right for score in scores)


def _write(walk, words) -> list[str]:
    """What the record has at each turn, as the model would write it."""
    rendering = words.grammar.render(walk.dialogue, history="strip")
    return list(write_answers(rendering, words.grammar.controls.end))


def test_trajectories_go_on_with_recorded_results(words, held_out):
    walks = read_trajectories(str(held_out), words, 9)
    assert [walk.origin for walk in walks] == ["held_out.jsonl:1", "held_out.jsonl:2"]
    prompts: list[str] = []

    def ask(asked: list[list[int]]) -> list[str]:
        going = [walk for walk in walks if not walk.is_over]
        prompts.extend(words.decode(ids) for ids in asked)
        # The first call of the second walk is in other letters, its second one is wrong.
        texts = [_write(walk, words)[len(walk.scores)] for walk in going]
        return [
            text.replace("Rome", "ROME").replace("Oslo", "Bergen") if walk is walks[1] else text
            for walk, text in zip(going, texts, strict=True)
        ]

    walk_trajectories(walks, words, ask)
    assert [[score.is_right for score in walk.scores] for walk in walks] == [
        [True, True],
        [True, False, True],
    ]
    assert summarize_trajectories(walks) == {
        "trajectories": 2,
        "trajectory_success": 1 / 2,
        "trajectory_progress": (1 + 1 / 3) / 2,
        "trajectory_turns": 4 / 5,
    }
    last = prompts[-1]  # of the second walk: its own first call, the recorded second one
    assert "ROME" in last
    assert "Oslo" in last
    assert "Bergen" not in last
    assert last.index("result 0") < last.index("result 1")


def test_a_prompt_that_talks_of_tools_offers_none(words):
    assert words.grammar.tools.read_offered("<tools>\n[1]\n</tools>") == []
    assert find_grammar(TINY_TOKENIZER).tools.read_offered("") == []
