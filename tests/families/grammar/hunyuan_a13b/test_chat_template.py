# ruff: noqa: RUF001  # the model was trained on these very characters
"""Our layout against the vendor's own Jinja template, and the one we ship against both."""

import datetime
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.families.grammar.hunyuan_a13b.chat_template import CHAT_TEMPLATE
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from hunyuan_train.families.grammar.tokenizer import to_nfc
from tests.data.dialogues import (
    NOW,
    TOOL_TURNS,
    TWO_SLOW_TURNS,
    WEATHER,
    call,
    chat,
    read,
    records,
)

chat_templates = pytest.importorskip("transformers.utils.chat_template_utils")


def _render_jinja(template, record, monkeypatch, now=NOW, **options):
    class FrozenClock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(now)

    monkeypatch.setattr(chat_templates, "datetime", FrozenClock)
    rendered, _ = chat_templates.render_jinja_template(
        conversations=[record["messages"]],
        tools=record.get("tools"),
        chat_template=template,
        **options,
    )
    return rendered[0]


def _render_ours(record):
    dialogue = read(record, now=NOW, is_as_written=True)
    return "".join(segment.text for segment in render(dialogue, history="keep").sample(0))


@pytest.fixture(scope="module")
def vendor_template(reference):
    return json.loads((reference / "tokenizer_config.json").read_text())["chat_template"]


def _as_a_client_sends(record):
    """Only what the vendor's template reads; thoughts and modes are nothing to it."""
    kept = ("role", "content", "tool_calls")
    messages = [{k: m[k] for k in kept if k in m} for m in record["messages"]]
    return {"messages": messages} | ({"tools": record["tools"]} if "tools" in record else {})


@settings(max_examples=60)
@given(record=records(text=st.text(max_size=8)))
def test_records_as_written_render_as_the_vendors_template_does(vendor_template, record):
    record = _as_a_client_sends(record)
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = _render_jinja(vendor_template, record, monkeypatch)
        assert _render_ours(record) == to_nfc(expected)
        assert _render_jinja(CHAT_TEMPLATE, record, monkeypatch) == expected


ODD_RECORDS = {
    "prompt": chat("Hi", system="S"),
    "two_questions": {"messages": [*chat("a")["messages"], *chat("b", "c")["messages"]]},
    "two_answers": {"messages": [*chat("a", "b")["messages"], chat("a", "c")["messages"][1]]},
    "empty_answer": chat("a", ""),
    "blank_system": chat("a", "b", system=" \n"),
    "blank_question": chat(" ", "b", "\n", "c"),
    "results_without_tools": {
        "messages": [
            *chat("a", "<tool_calls>[1]</tool_calls>")["messages"],
            {"role": "tool", "content": "R1"},
            {"role": "tool", "content": "R2"},
            {"role": "assistant", "content": "b"},
        ]
    },
    "calls_without_tools": {
        "messages": [*chat("a")["messages"], call(), *chat("b", "c")["messages"]]
    },
    "call_with_text": {"messages": [*chat("a")["messages"], call(content="x")], "tools": [WEATHER]},
    "string_arguments": {
        "tools": [WEATHER],
        "messages": [
            *chat("a")["messages"],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city":"서"}'}}],
            },
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "warm"},
            {"role": "user", "content": "and now?"},
        ],
    },
    "tagged_answer_with_tools": {
        **chat("a", "<think>\nt\n</think>\n<answer>\nb\n</answer>", system="S"),
        "tools": [WEATHER],
    },
    "empty_system_with_tools": {**chat("a", "b", system=""), "tools": [WEATHER]},
    "no_calls_in_the_list": {
        "tools": [WEATHER],
        "messages": [
            *chat("a")["messages"],
            {"role": "assistant", "content": "hi", "tool_calls": []},
        ],
    },
    "odd_tools": {
        **chat("a", "b"),
        "tools": [
            {"function": {"name": "f", "note": "<b>'x'</b> & \N{LINE SEPARATOR}é", "n": 1e-7}}
        ],
    },
    "broken_tags": chat("a", "<think>\nt</think><answer>b"),
}


@pytest.mark.parametrize("record", ODD_RECORDS.values(), ids=ODD_RECORDS)
def test_odd_records_as_written_render_as_the_vendors_template_does(
    vendor_template, monkeypatch, record
):
    assert _render_ours(record) == _render_jinja(vendor_template, record, monkeypatch)


def test_all_golden_vectors_have_the_bytes_of_the_renderer(golden, monkeypatch):
    for line in (golden / "thinking_public.jsonl").read_text(encoding="utf-8").splitlines():
        vector = json.loads(line)
        now = re.search(r"当前时间：(.{19}) ", vector["rendered"])
        options = vector["kwargs"] | ({"now": now[1]} if now else {})
        rendered = _render_jinja(CHAT_TEMPLATE, vector, monkeypatch, **options)
        assert rendered == vector["rendered"], vector["name"]


@pytest.mark.parametrize("record", [TWO_SLOW_TURNS, TOOL_TURNS], ids=["thoughts", "tools"])
@pytest.mark.parametrize("has_call", [False, True])
def test_a_last_answer_with_thoughts_is_the_target_of_training(record, has_call, monkeypatch):
    if has_call and "tools" in record:
        record = record | {"messages": record["messages"][:2]}
    samples = render(read(record, now=NOW))
    last = samples.sample(len(samples.targets) - 1)
    expected = "".join(segment.text for segment in last)
    assert "<think>\nT" in expected
    assert _render_jinja(CHAT_TEMPLATE, record, monkeypatch) == expected


def test_thinking_switched_off_by_the_client_adds_its_block(vendor_template, monkeypatch):
    record = chat("Hi", system="S")
    options = {"enable_thinking": False}
    expected = _render_jinja(vendor_template, record, monkeypatch, **options)
    assert _render_ours({**record, "chat_template_kwargs": options}) == expected
    assert _render_jinja(CHAT_TEMPLATE, record, monkeypatch, **options) == expected


def test_the_bundled_template_is_the_one_of_this_package(tokenizer):
    bundled = (tokenizer.folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert bundled == CHAT_TEMPLATE
