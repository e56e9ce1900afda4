import dataclasses

import pytest

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from tests.data.dialogues import chat, kinds_of, problems_of, read


def _tagged(thoughts, answer):
    return f"<think>\n{thoughts}\n</think>\n<answer>\n{answer}\n</answer>"


def _modes(record, **reading):
    return [m.mode for m in read(record, **reading).messages if m.role == "assistant"]


def _queries(record, **reading):
    return [m.content for m in read(record, **reading).messages if m.role == "user"]


@pytest.mark.parametrize("where", ["record", "run"])
def test_a_stated_fast_mode_puts_no_think_once_before_each_query(where):
    record = chat("a", "b", "/no_think c", "d", "/no_think请", "e")
    if where == "record":
        record["mode"] = "fast"
    reading = {"mode": "fast"} if where == "run" else {}
    assert _queries(record, **reading) == ["/no_think a", "/no_think c", "/no_think请"]
    assert _modes(record, **reading) == ["fast"] * 3


def test_a_record_goes_before_the_run():
    assert _modes(chat("a", _tagged("r", "b"), mode="auto"), mode="fast") == ["slow"]
    assert _modes(chat("a", "b", mode="fast"), mode="slow") == ["fast"]


def test_an_untagged_dialogue_is_asked_about_unless_record_or_run_answers():
    assert [one.kind for one in problems_of(chat("a", "b"))] == ["untagged"]
    assert problems_of(chat("a", "b", mode="plain")) == []
    for mode in ("plain", "fast"):
        assert problems_of(chat("a", "b"), mode=mode) == []
    assert "mode" in kinds_of(chat("a", "b"), mode="slow")


def test_a_model_without_modes_is_asked_nothing():
    grammar = dataclasses.replace(HUNYUAN_A13B, has_modes=False)
    problems = []
    dialogue = read_dialogue(chat("a", "b"), Reading(grammar), problems)
    assert problems == []
    assert dialogue.messages[1].mode == "plain"


def test_a_plain_dialogue_stays_plain_unless_the_run_says_otherwise():
    assert _modes(chat("a", "b")) == ["plain"]
    assert _modes(chat("a", "b"), mode="fast") == ["fast"]


def test_bare_answers_of_a_fast_dialogue_are_fast_targets():
    record = chat("/no_think a", "b", "/no_think c", _tagged("", "d"))
    assert _modes(record) == ["fast", "fast"]
    assert kinds_of(record) == set()


def test_bare_answers_of_a_slow_dialogue_are_context():
    record = chat("a", "b", "c", _tagged("r", "d"))
    messages = read(record).messages
    assert [m.is_context for m in messages if m.role == "assistant"] == [True, False]
    assert kinds_of(record) == {"history_only"}


def test_a_user_who_switches_gives_each_turn_its_own_mode():
    record = chat("/no_think a", _tagged("", "b"), "c", _tagged("r", "d"), "/no_think e", "f")
    assert _modes(record) == ["fast", "slow", "fast"]
    assert _queries(record) == ["/no_think a", "c", "/no_think e"]
    assert kinds_of(record) == set()


def test_thoughts_after_no_think_are_a_contradiction_in_any_dialogue():
    record = chat("/no_think a", _tagged("r", "b"), "c", _tagged("r", "d"))
    assert kinds_of(record) == {"mode"}


def test_an_empty_block_without_no_think_is_fixed_on_demand():
    record = chat("a", _tagged("", "b"))
    assert _queries(record) == ["/no_think a"]
    assert kinds_of(record) == {"mode"}


def test_empty_thoughts_in_a_field_state_nothing():
    record = chat("a", "b")
    record["messages"][1]["reasoning_content"] = ""
    assert _modes(record) == ["plain"]
