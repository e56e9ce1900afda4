# ruff: noqa: RUF001  # the model writes these very characters
"""Answers are taken apart as the serving parsers do it, at once and in pieces."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hunyuan_train.families.grammar.dialogue import ToolCall
from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import (
    OutputStream,
    ParsedOutput,
    parse_output,
)

# The two expressions that define what vLLM's hunyuan_a13b reasoning parser extracts.
WHOLE = re.compile(r"(?:<think>\n(.*?)\n</think>\n<answer>\n)?(.*?)\n</answer>", re.DOTALL)
UNFINISHED = re.compile(r"<think>\n(.*?)\n</think>\n<answer>\n(.*)", re.DOTALL)

CALL = (
    '<tool_calls>[{"name": "f", "arguments": {"city": "Köln", "days": [1, {"a": 2}]}}]</tool_calls>'
)
BROKEN, EMPTY = "<tool_calls>[{</tool_calls>", "<tool_calls>[]</tool_calls>"
MERGED = "<think>\nr.</think>\n<answer>\nA"  # the newline before the closing tag is missing
ARGUMENTS = json.dumps({"city": "Köln", "days": [1, {"a": 2}]}, ensure_ascii=False)

PARTS = ["<think>", "</think>", "<answer>", "</answer>", "\n", "<", "a", "。", "</", "\n</"]
PARTS += ["<think>\n", "\n</think>\n<answer>\n", "\n</answer>"]
TOOL_PARTS = [
    "<tool_calls>",
    "</tool_calls>",
    "助手：",
    "助",
    "[",
    "]",
    CALL,
    '{"name": 1}',
    "<tool",
]

anything = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
anything_with_tools = st.lists(st.sampled_from(PARTS + TOOL_PARTS), max_size=14).map("".join)
plain = st.text(alphabet="ab \n<>/think。", max_size=30)


def served(text: str) -> tuple[str | None, str | None]:
    """Reasoning and content as the served expressions give them."""
    found = WHOLE.findall(text) or UNFINISHED.findall(text)
    reasoning, content = found[0] if found else ("", text)
    return reasoning or None, content or None


def feed(text: str, cuts: list[int], *, has_tools: bool) -> tuple[dict[str, str], ParsedOutput]:
    stream = OutputStream(has_tools=has_tools)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    fields: dict[str, str] = {"reasoning_content": "", "content": ""}
    for start, end in pairwise(bounds):
        for field, piece in stream.feed(text[start:end]):
            fields[field] += piece
    for field, piece in stream.finish():
        fields[field] += piece
    return fields, stream.result()


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "is_well_formed"),
    [
        ("<think>\nr\n</think>\n<answer>\nA\n</answer>", "r", "A", True),
        ("<think>\n\n</think>\n<answer>\nA\n</answer>", None, "A", True),
        ("<think>\na</think>b\n</think>\n<answer>\nA\n</answer>", "a</think>b", "A", True),
        ("<think>\nr\n</think>\n<answer>\nA\n</answer>\n</answer>", "r", "A", False),
        ("<think>\nr\n</think>\n<answer>\nA", "r", "A", False),
        (MERGED + "\n</answer>", None, MERGED, False),
        ("<answer>\nA\n</answer>", None, "<answer>\nA", False),
        ("plain text", None, "plain text", False),
        ("<think>\nendless", None, "<think>\nendless", False),
        ("", None, None, False),
    ],
)  # fmt: skip
def test_known_answers(
    text: str, reasoning: str | None, content: str | None, is_well_formed: bool
) -> None:
    assert parse_output(text) == ParsedOutput(reasoning, content, (), is_well_formed)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CALL, ParsedOutput("r", None, (ToolCall("f", ARGUMENTS),), True)),
        (f"I look.{CALL}", ParsedOutput("r", "I look.", (ToolCall("f", ARGUMENTS),), True)),
        ("助手：hi 助手：", ParsedOutput("r", "hi 助手：", (), True)),
        (BROKEN, ParsedOutput("r", BROKEN, (), False)),
        (EMPTY, ParsedOutput("r", EMPTY, (), False)),
        ("<tool_calls>[1]", ParsedOutput("r", "<tool_calls>[1]", (), False)),
        (CALL + "so", ParsedOutput("r", "so", (ToolCall("f", ARGUMENTS),), False)),
    ],
)  # fmt: skip
def test_calls_are_found_where_tools_were_offered(answer: str, expected: ParsedOutput) -> None:
    text = f"<think>\nr\n</think>\n<answer>\n{answer}\n</answer>"
    assert parse_output(text, has_tools=True) == expected
    assert parse_output(text) == ParsedOutput("r", answer, (), is_well_formed=True)


def test_a_message_has_the_fields_of_the_openai_interface() -> None:
    text = f"<think>\n\n</think>\n<answer>\n{CALL}\n</answer>"
    assert parse_output(text, has_tools=True).to_message() == {
        "role": "assistant",
        "reasoning_content": None,
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}],
    }


@given(text=anything)
@example(text="<think>\n</answer>\n</answer>\n</think>\n<answer>\n")
def test_any_text_is_split_as_it_is_served(text: str) -> None:
    parsed = parse_output(text)
    assert (parsed.reasoning_content, parsed.content) == served(text)


@given(text=anything_with_tools, cuts=st.lists(st.integers(0, 999)), has_tools=st.booleans())
def test_pieces_give_what_the_whole_gives(text: str, cuts: list[int], has_tools: bool) -> None:
    fields, result = feed(text, cuts, has_tools=has_tools)
    assert result == parse_output(text, has_tools=has_tools)
    assert fields == feed(text, [], has_tools=has_tools)[0]


@given(
    thoughts=plain,
    answer=plain,
    calls=st.sampled_from(["", CALL]),
    cuts=st.lists(st.integers(0, 999)),
)
def test_the_pieces_of_a_whole_answer_are_its_fields(
    thoughts: str, answer: str, calls: str, cuts: list[int]
) -> None:
    text = f"<think>\n{thoughts}\n</think>\n<answer>\n{answer}{calls}\n</answer>"
    for has_tools in (False, True):
        fields, result = feed(text, cuts, has_tools=has_tools)
        assert result.is_well_formed
        assert fields["reasoning_content"] == (result.reasoning_content or "") == thoughts
        assert fields["content"].strip() == (result.content or "").strip()
        assert len(result.tool_calls) == (has_tools and bool(calls))
