"""Every layout of preferences comes down to the same sides, and what is no pair is named."""

import json

import pytest

from hunyuan_train.data.compiled.compile import read_record
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.data.findings import Problem, build_policies
from hunyuan_train.data.records.convert import to_preference
from hunyuan_train.data.records.preferences import Side, read_sides
from hunyuan_train.data.records.record import Reading
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B

USER = {"role": "user", "content": "Q"}
ANSWERS = [{"role": "assistant", "content": text} for text in ("yes", "no")]
OTHER = {"role": "user", "content": "R"}
PLAIN = {"mode": "plain"}
LAYOUTS = {
    "texts": {"prompt": "Q", "chosen": "yes", "rejected": "no"},
    "messages": {"prompt": [USER], "chosen": ANSWERS[:1], "rejected": ANSWERS[1:]},
    "one message": {"prompt": [USER], "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
    "implicit prompt": {"chosen": [USER, ANSWERS[0]], "rejected": [USER, ANSWERS[1]]},
    "ultrafeedback": {
        "prompt": "Q",
        "chosen": [USER, ANSWERS[0]],
        "rejected": [USER, ANSWERS[1]],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "Alpaca": {"instruction": "Q", "input": "", "chosen": "yes", "rejected": "no"},
    "hh-rlhf": {
        "chosen": "\n\nHuman: Q\n\nAssistant: yes",
        "rejected": "\n\nHuman: Q\n\nAssistant: no",
    },
    "ms-swift": {"messages": [USER, ANSWERS[0]], "rejected_response": "no"},
    "OpenAI": {
        "input": {"messages": [USER]},
        "preferred_output": ANSWERS[:1],
        "non_preferred_output": ANSWERS[1:],
    },
}


def read(record: object, records: str = "pairs", **fields: object) -> tuple[list[Side], list[str]]:
    problems: list[Problem] = []
    sides = read_sides(record, Reading(HUNYUAN_A13B, records=records, **fields), problems)
    policies = build_policies()
    return sides, [one.kind for one in problems if policies.decide(one) != "note"]


def said(side: Side) -> list[tuple[str, str, bool]]:
    messages = side.dialogue.messages
    return [(one.role, one.content, one.is_trained and one.role != "user") for one in messages]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pair(layout: str) -> None:
    (chosen, rejected), refused = read(LAYOUTS[layout] | PLAIN)
    assert refused == []
    assert (chosen.verdict, rejected.verdict) == (CHOSEN, REJECTED)
    assert [said(chosen)[-1][:2], said(rejected)[-1][:2]] == [
        ("assistant", "yes"),
        ("assistant", "no"),
    ]
    assert said(chosen)[:-1] == said(rejected)[:-1] == [("user", "Q", False)]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"prompt": "Q", "chosen": "yes", "rejected": "yes"}, "pair_identical"),
        ({"chosen": [USER, ANSWERS[0]], "rejected": [OTHER, ANSWERS[1]]}, "pair_prompt"),
        ({"prompt": "Q", "completion": "yes"}, "form"),
        ({"prompt": "Q", "rejected": "no"}, "form"),
        ({"prompt": "Q", "chosen": "yes", "rejected": ""}, "empty_answer"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_named(record: dict, kind: str) -> None:
    assert kind in read(record | PLAIN)[1]


@pytest.mark.parametrize(
    ("record", "records", "reason"),
    [
        ({"chosen": "yes", "rejected": "no"}, "pairs", "no prompt stands beside them"),
        ({"prompt": "Q", "completion": "a", "label": None}, "judged", "label is None"),
        ({"prompt": "Q", "completion": "a"}, "judged", "no label"),
        ({"prompt": "Q", "chosen": "a"}, "judged", "no rejected answer"),
    ],
)
def test_what_is_missing_is_said(record: dict, records: str, reason: str) -> None:
    problems: list[Problem] = []
    assert not read_sides(record, Reading(HUNYUAN_A13B, records=records), problems)
    [problem] = problems
    assert reason in problem.reason


def test_supervised_fine_tuning_says_once_that_it_is_given_pairs() -> None:
    problems: list[Problem] = []
    assert not read_record(LAYOUTS["texts"], Reading(HUNYUAN_A13B), problems)
    [problem] = problems
    assert "train with --objective dpo" in problem.fix


def test_answers_with_a_label_name_the_objective_that_reads_them() -> None:
    record = {"prompt": "Q", "completion": "a", "label": True} | PLAIN
    for records in ("dialogues", "pairs"):
        problems: list[Problem] = []
        read_record(record, Reading(HUNYUAN_A13B, records=records), problems)
        [fix] = [one.fix for one in problems if one.kind in ("form", "unread_text")]
        assert "--objective kto" in fix
    problems = []
    read_record(record | {"label": "news"}, Reading(HUNYUAN_A13B), problems)
    assert "--objective" not in "".join(one.fix for one in problems)


def test_earlier_answers_are_prompt_and_carry_no_loss() -> None:
    turns = [USER, ANSWERS[0], USER | {"content": "again"}]
    (chosen, _), refused = read({"prompt": turns, "chosen": "a", "rejected": "b"} | PLAIN)
    assert refused == []
    assert [trained for *_, trained in said(chosen)] == [False, False, False, True]


def test_a_bare_answer_takes_the_mode_that_the_other_side_shows() -> None:
    thinking = ANSWERS[0] | {"reasoning_content": "hm"}
    (chosen, rejected), refused = read({"prompt": "Q", "chosen": [thinking], "rejected": "no"})
    assert refused == []
    assert chosen.dialogue.messages[-1].mode == "slow"
    assert rejected.dialogue.messages[-1].mode == "plain"
    fast = "<think>\n\n</think>\n<answer>\nyes\n</answer>"
    (chosen, rejected), refused = read({"prompt": "/no_think Q", "chosen": fast, "rejected": "no"})
    assert refused == []
    assert [side.dialogue.messages[-1].mode for side in (chosen, rejected)] == ["fast", "fast"]
    assert read({"prompt": "Q", "chosen": "yes", "rejected": "no"})[1] == ["untagged"]


@pytest.mark.parametrize(
    ("label", "verdict"),
    [(True, CHOSEN), ("false", REJECTED), (1, CHOSEN), (0, REJECTED), (1.0, CHOSEN)],
)
def test_labels_judge_single_answers(label: object, verdict: int) -> None:
    record = {"prompt": "Q", "completion": "yes", "label": label} | PLAIN
    [side], refused = read(record, records="judged")
    assert (side.verdict, refused) == (verdict, [])
    assert said(side) == [("user", "Q", False), ("assistant", "yes", True)]


def test_a_pair_is_two_judged_answers_and_an_odd_label_is_none() -> None:
    sides, refused = read(LAYOUTS["texts"] | PLAIN, records="judged")
    assert ([side.verdict for side in sides], refused) == ([CHOSEN, REJECTED], [])
    assert read({"prompt": "Q", "completion": "a", "label": "good"}, records="judged")[1] == [
        "form"
    ]


@pytest.mark.parametrize("records", ["pairs", "judged"])
def test_a_plain_text_is_no_preference(records: str) -> None:
    for record in ({"text": "a document"}, {"text": "a document", "label": True}):
        sides, refused = read(record, records)
        assert sides == []
        assert "form" in refused


def compare(side: Side) -> tuple[object, ...]:
    """All of a side that rendering looks at."""
    dialogue = side.dialogue
    messages = [
        (one.role, one.content, one.thoughts or "", one.mode, one.tool_calls, one.weight)
        + ((one.is_trained, one.is_context) if one.role == "assistant" else ())
        for one in dialogue.messages
    ]
    return side.verdict, messages, dialogue.tools, dialogue.now if dialogue.tools else ""


CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
WRITTEN = {
    **{name: record | PLAIN for name, record in LAYOUTS.items()},
    "fast": LAYOUTS["texts"] | {"mode": "fast", "id": "p7"},
    "slow": {
        "mode": "slow",
        "prompt": [USER],
        "chosen": [ANSWERS[0] | {"reasoning_content": "t"}],
        "rejected": [ANSWERS[1] | {"reasoning_content": "u"}],
    },
    "one side thinks": {
        "prompt": [USER],
        "chosen": "<think>\nt\n</think>\n<answer>\nyes\n</answer>",
        "rejected": "no",
    },
    "turns": {
        "mode": "fast",
        "prompt": [USER, ANSWERS[0], OTHER],
        "chosen": ANSWERS[:1],
        "rejected": ANSWERS[1:],
    },
    "calls": {
        "mode": "fast",
        "now": "2026-03-02 09:15:00",
        "tools": [TOOL],
        "prompt": [USER],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": CALLS}],
        "rejected": ANSWERS[1:],
    },
}


@pytest.mark.parametrize("layout", WRITTEN)
def test_a_pair_that_is_written_reads_back_as_it_was(layout: str) -> None:
    sides, refused = read(WRITTEN[layout])
    assert refused == []
    written = json.loads(json.dumps(to_preference(sides, HUNYUAN_A13B)))
    assert {"prompt", "chosen", "rejected"} <= written.keys()
    again, refused = read(written)
    assert refused == []
    assert [compare(one) for one in again] == [compare(one) for one in sides]
    assert to_preference(again, HUNYUAN_A13B) == written


@pytest.mark.parametrize("label", [True, False])
def test_a_judged_answer_that_is_written_reads_back_as_it_was(label: bool) -> None:
    record = {"mode": "fast", "prompt": [USER, ANSWERS[0], OTHER], "completion": "yes"}
    sides, refused = read(record | {"label": label}, "judged")
    assert refused == []
    written = to_preference(sides, HUNYUAN_A13B)
    assert written["label"] is label
    again, refused = read(written, "judged")
    assert refused == []
    assert [compare(one) for one in again] == [compare(one) for one in sides]
