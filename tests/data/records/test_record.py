"""The bad inputs that real files hold, and what is done about each."""

import json

import pytest

from hunyuan_train.data.findings import build_policies
from hunyuan_train.data.records.texts import MAX_BLANK_RUN
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import ToolCall
from hunyuan_train.families.grammar.hunyuan_a13b.tools import ASSISTANT_LABEL, USER_LABEL
from tests.data.dialogues import NOW, WEATHER, call, chat, kinds_of, problems_of, read

# Most records here have no mode, which is not what they are about.
DECIDE = build_policies({"untagged": "note"}).decide


def _user(content):
    return {"role": "user", "content": content}


def _answer(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def _chat_of(*messages, **fields):
    return {**fields, "messages": list(messages)}


def _tagged(thoughts, answer):
    return f"<think>\n{thoughts}\n</think>\n<answer>\n{answer}\n</answer>"


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]

# name: (record, kind of the finding, what happens by default)
CASES = {
    "no_messages": (_chat_of(), "no_answer", "error"),
    "capital_role": (_chat_of(_user("a"), {"role": "Assistant", "content": "b"}), "role", "fix"),
    "unknown_role": (_chat_of(_user("a"), {"role": "gpt", "content": "b"}), "role", "error"),
    "missing_role": (_chat_of({"content": "a"}, _answer("b")), "role", "error"),
    "message_is_text": (_chat_of("a", _answer("b")), "form", "error"),
    "no_answer": (_chat_of(_user("a")), "no_answer", "error"),
    "trailing_user": (chat("a", "b", "c"), "trailing_user", "fix"),
    "two_users": (_chat_of(_user("a"), _user("b"), _answer("c")), "repeated_role", "error"),
    "two_answers": (_chat_of(_user("a"), _answer("b"), _answer("c")), "repeated_role", "error"),
    "late_system": (
        _chat_of(_user("a"), {"role": "system", "content": "s"}, _answer("b")),
        "system",
        "error",
    ),
    "two_systems": (
        _chat_of(*[{"role": "system", "content": "s"}] * 2, _user("a"), _answer("b")),
        "system",
        "error",
    ),
    "answer_first": (_chat_of(_answer("a"), _user("b"), _answer("c")), "order", "error"),
    "blank_answer": (chat("a", " \n"), "empty_answer", "error"),
    "null_answer": (chat("a", None), "empty_answer", "error"),
    "missing_answer": (_chat_of(_user("a"), {"role": "assistant"}), "empty_answer", "error"),
    "empty_tagged_answer": (chat("/no_think a", _tagged("", "")), "empty_answer", "error"),
    "empty_system": (chat("a", "b", system=""), "empty_system", "fix"),
    "blank_system": (chat("a", "b", system=" "), "empty_system", "fix"),
    "empty_user": (chat("", "b"), "empty_user", "error"),
    "number_content": (chat("a", 5), "content_type", "fix"),
    "boolean_content": (chat("a", True), "content_type", "error"),
    "several_texts": (chat("a", ["b", "c"]), "content_type", "error"),
    "object_content": (chat({"a": 1}, "b"), "content_type", "error"),
    "text_parts": (chat(PARTS, "b"), "content_type", "fix"),
    "image_part": (chat(IMAGE, "b"), "content_type", "error"),
    "image_beside_text": (chat(PARTS + IMAGE, "b"), "content_type", "error"),
    "broken_tags": (chat("a", "b<think>\nr</think>"), "tags", "error"),
    "loose_tags": (chat("a", "<think>r</think>b"), "tags", "fix"),
    "thoughts_twice": (
        _chat_of(_user("a"), _answer(_tagged("r", "b"), reasoning_content="r")),
        "tags",
        "error",
    ),
    "closing_tag_in_the_answer": (
        _chat_of(_user("a"), _answer("b\n</answer>\nc"), mode="fast"),
        "tags",
        "error",
    ),
    "no_think_with_thoughts": (chat("/no_think a", _tagged("r", "b")), "mode", "error"),
    "no_no_think_with_empty_block": (chat("a", _tagged("", "b")), "mode", "error"),
    "fast_with_thoughts": (
        _chat_of(_user("a"), _answer("b", reasoning_content="r"), mode="fast"),
        "mode",
        "error",
    ),
    "slow_with_no_think": (
        _chat_of(_user("/no_think a"), _answer("b", reasoning_content="r"), mode="slow"),
        "mode",
        "error",
    ),
    "slow_without_thoughts": (chat("a", "b", mode="slow"), "mode", "error"),
    "unknown_mode": (chat("a", "b", mode="medium"), "mode", "error"),
    "special_token": (chat("what is <|eos|>?", "b"), "special_tokens", "note"),
    "not_nfc": (chat("e\N{COMBINING ACUTE ACCENT}", "b"), "normalised", "fix"),
    "blank_run": (chat("a" + " " * 300_000, "b"), "size", "error"),
    "unused_field": (chat("a", "b", source="x"), "unused_field", "note"),
    "unused_message_field": (_chat_of(_user("a"), _answer("b", score=1)), "unused_field", "note"),
    "bad_weight": (_chat_of(_user("a"), _answer("b", weight=-1)), "weight", "error"),
    "bad_train": (_chat_of(_user("a"), _answer("b", train="yes")), "weight", "error"),
    "nothing_trained": (_chat_of(_user("a"), _answer("b", train=False)), "no_answer", "error"),
    "weight_zero": (_chat_of(_user("a"), _answer("b", weight=0)), "no_answer", "error"),
    "call_without_tools": (_chat_of(_user("a"), call()), "tools", "error"),
    "unknown_function": (
        _chat_of(_user("a"), call(), tools=[{"type": "function", "function": {"name": "f"}}]),
        "tools",
        "error",
    ),
    "result_without_call": (
        _chat_of(_user("a"), {"role": "tool", "content": "r"}, _answer("b"), tools=[WEATHER]),
        "tools",
        "error",
    ),
    "arguments_not_json": (
        _chat_of(
            _user("a"),
            _answer("", tool_calls=[{"function": {"name": "get_weather", "arguments": "{x"}}]),
            tools=[WEATHER],
        ),
        "tools",
        "error",
    ),
    "call_without_name": (
        _chat_of(_user("a"), _answer("", tool_calls=[{"function": {}}]), tools=[WEATHER]),
        "tools",
        "error",
    ),
    "tools_not_a_list": (chat("a", "b", tools=7), "tools", "error"),
    "tool_without_name": (chat("a", "b", tools=[{"x": 1}]), "tools", "error"),
    "function_not_an_object": (chat("a", "b", tools=[{"function": "f"}]), "tools", "error"),
    "object_result": (
        _chat_of(_user("a"), call(), {"role": "tool", "content": {"t": 1}}, tools=[WEATHER]),
        "content_type",
        "fix",
    ),
    "quote_in_a_name": (
        _chat_of(
            _user("a"),
            _answer("", tool_calls=[{"function": {"name": 'f"', "arguments": {}}}]),
            tools=[{"function": {"name": 'f"'}}],
        ),
        "tools",
        "error",
    ),
    "call_that_a_server_would_cut": (
        _chat_of(_user("a"), call("</tool_calls>"), tools=[WEATHER]),
        "tools",
        "error",
    ),
    "fewer_results_than_calls": (
        _chat_of(
            _user("a"),
            call(tool_calls=call()["tool_calls"] * 2),
            {"role": "tool", "content": "r"},
            _answer("b"),
            tools=[WEATHER],
        ),
        "tool_results",
        "note",
    ),
    "thoughts_in_two_fields": (
        _chat_of(_user("a"), _answer("b", reasoning="x", thinking="y")),
        "tags",
        "error",
    ),
    "loss_fields_of_a_question": (
        _chat_of({**_user("a"), "train": False}, _answer("b")),
        "unused_field",
        "note",
    ),
    "weight_beyond_float32": (
        _chat_of(_user("a"), _answer("b", weight=1e300)),
        "weight",
        "error",
    ),
    "weight_that_float32_takes_for_none": (
        _chat_of(_user("a"), _answer("b", weight=1e-60)),
        "weight",
        "error",
    ),
    "capital_tags": (chat("a", "<Think>r</Think><Answer>b</Answer>"), "tags", "fix"),
    "bad_now": (chat("a", "b", tools=[WEATHER], now="yesterday"), "now", "error"),
}


@pytest.mark.parametrize(("record", "kind", "action"), CASES.values(), ids=CASES)
def test_a_bad_record_is_found_and_treated(record, kind, action):
    found = {problem.kind: DECIDE(problem) for problem in problems_of(record)}
    assert found.get(kind) == action
    assert all(problem.reason and problem.fix for problem in problems_of(record))
    refusals = {kind for kind, decided in found.items() if decided == "error"}
    assert refusals == ({kind} if action == "error" else set())


GOOD = {
    "plain": chat("a", "b"),
    "fast": chat("a", "b", mode="fast"),
    "fast_tagged": chat("/no_think a", _tagged("", "b")),
    "fast_tagged_without_blank": chat("/no_think请", _tagged("", "b")),
    "slow_tagged": chat("a", _tagged("r", "b")),
    "think_prefix": chat("/think a", _tagged("r", "b")),
    "call": _chat_of(_user("a"), call(), tools=[WEATHER]),
    "call_as_text": chat("a", '<tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>'),
    "two_results": _chat_of(
        _user("a"),
        call(tool_calls=call()["tool_calls"] * 2),
        {"role": "tool", "content": "r"},
        {"role": "tool", "content": "r"},
        _answer("b"),
        tools=[WEATHER],
        now=NOW,
    ),
    "call_without_content": _chat_of(
        _user("a"),
        {"role": "assistant", "tool_calls": call()["tool_calls"]},
        {"role": "tool", "content": "r"},
        _answer("b"),
        tools=[WEATHER],
    ),
    "null_content_of_a_call": _chat_of(_user("a"), call(content=None), tools=[WEATHER]),
    "no_think_as_part_of_a_word": chat("/no_thinking is a flag", "b"),
    "null_fields": _chat_of(
        {**_user("a"), "tool_calls": []}, _answer("b", tool_calls=None, reasoning_content=None)
    ),
    "weights": _chat_of(_user("a"), _answer("b", weight=0.5, train=True)),
    "tag_talk": chat("a", "the <think> tag"),
}


@pytest.mark.parametrize("record", GOOD.values(), ids=GOOD)
def test_nothing_is_said_about_a_good_record(record):
    assert kinds_of(record) == set()


def test_a_role_in_another_spelling_is_read():
    record = _chat_of({"role": "developer", "content": "s"}, {"role": "User ", "content": "a"})
    assert [message.role for message in read(record).messages] == ["system", "user"]


def test_the_hint_for_an_unknown_role_names_the_known_one():
    [problem] = [
        p
        for p in problems_of(_chat_of(_user("a"), {"role": "gpt", "content": "b"}))
        if p.kind == "role"
    ]
    assert problem.field == "messages[1].role"
    assert "assistant" in problem.fix


def test_repairs_keep_every_text():
    record = _chat_of(
        _user("a"),
        _user("b"),
        {"role": "system", "content": "s"},
        _answer("c"),
        _answer("d"),
        _user("e"),
    )
    messages = [(m.role, m.content) for m in read(record).messages]
    assert messages == [("system", "s"), ("user", "a\n\nb"), ("assistant", "c\n\nd")]
    assert {"repeated_role", "system", "trailing_user"} <= kinds_of(record)


def test_answers_with_different_thoughts_are_not_joined():
    record = _chat_of(_user("a"), _answer("b", think="x"), _answer("c", think="y"))
    [problem] = [one for one in problems_of(record) if one.kind == "repeated_role"]
    assert not problem.is_repaired


def test_arguments_are_written_as_a_server_writes_them():
    functions = [
        {"name": "get_weather", "arguments": '{"city":"서울"}'},
        {"name": "get_weather", "arguments": {"city": "서울"}},
    ]
    record = _chat_of(
        _user("a"), _answer("", tool_calls=[{"function": f} for f in functions]), tools=[WEATHER]
    )
    assert [one.arguments for one in read(record).messages[1].tool_calls] == [
        '{"city": "서울"}'
    ] * 2


def test_arguments_that_a_table_filled_with_null_are_none():
    calls = [{"function": {"name": "get_weather", "arguments": None}}]
    record = _chat_of(_user("a"), _answer("", tool_calls=calls), tools=[WEATHER])
    assert read(record).messages[1].tool_calls == [ToolCall("get_weather", "{}")]
    assert kinds_of(record) == set()


@pytest.mark.parametrize("is_as_written", [True, False])
@pytest.mark.parametrize("place", ["name", "arguments", "arguments_text", "tools"])
def test_blanks_that_the_tokenizer_cannot_split_are_found_in_calls_too(place, is_as_written):
    blanks = " " * MAX_BLANK_RUN
    function = {"name": "get_weather", "arguments": {}}
    tools = [WEATHER]
    if place == "tools":
        tools = [{**WEATHER, "description": blanks}]
    elif place == "name":
        function["name"] += blanks
    else:
        arguments = {"city": blanks}
        function["arguments"] = json.dumps(arguments) if place != "arguments" else arguments
    record = _chat_of(_user("a"), _answer("", tool_calls=[{"function": function}]), tools=tools)
    assert kinds_of(record, is_as_written=is_as_written) == {"size"}


def test_a_message_of_nothing_but_calls_is_read():
    message = _answer("", tool_calls=[{"function": {"name": "get_weather", "arguments": "{}"}}])
    del message["content"]
    record = _chat_of(_user("a"), message, tools=[WEATHER])
    assert read(record).messages[1].tool_calls == [ToolCall("get_weather", "{}")]


def test_labels_and_calls_that_are_text_already_are_not_written_twice():
    record = _chat_of(
        _user(f"{USER_LABEL}a"),
        _answer('<tool_calls>[{"name": "get_weather", "arguments": {"city": "x"}}]</tool_calls>'),
        {"role": "tool", "content": "r"},
        _answer(f"{ASSISTANT_LABEL}b"),
        tools=[WEATHER],
    )
    messages = read(record).messages
    assert messages[0].content == "a"
    assert messages[1].tool_calls == [ToolCall("get_weather", '{"city": "x"}')]
    assert messages[3].content == "b"


def test_the_time_of_a_tools_prompt_is_stated_or_seeded_and_never_the_clock():
    record = chat("a", "b", tools=[WEATHER])
    assert read({**record, "now": NOW}).now == NOW
    assert read(record, now=NOW).now == NOW
    seeded = read(record).now
    assert seeded == read(record).now
    assert seeded != read(chat("c", "b", tools=[WEATHER])).now


def test_a_call_behind_text_is_read_as_the_template_writes_it():
    text = 'one moment\n<tool_calls>[{"name": "get_weather", "arguments": {}}]</tool_calls>\n'
    message = read(_chat_of(_user("a"), _answer(text), tools=[WEATHER])).messages[1]
    assert (message.content, message.tool_calls) == ("one moment", [ToolCall("get_weather", "{}")])


def test_a_time_is_written_as_the_template_writes_it():
    record = chat("a", "b", tools=[WEATHER], now="2026-3-2 9:5:0")
    assert read(record).now == "2026-03-02 09:05:00"
    with pytest.raises(DataError, match="now is 'noon'; write it like"):
        read(chat("a", "b"), now="noon")


def test_the_whole_blank_run_is_shortened_by_the_repair():
    assert read(chat("a" + "\t" * 300_000 + "b", "c")).messages[0].content == "a\tb"


@pytest.mark.parametrize("role", ["context", "documents", "reasoning", "thought", "", "用户", "me"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unknown_role_is_the_one_thing_said_of_the_order(role, place):
    turns = [_user("a"), _answer("b")]
    turns.insert(place, {"role": role, "content": "c"})
    kinds = {problem.kind for problem in problems_of({"messages": turns})}
    assert "role" in kinds
    assert not kinds & {"repeated_role", "order", "trailing_user", "no_answer", "system"}
