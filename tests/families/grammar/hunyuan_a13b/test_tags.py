import pytest
from hypothesis import given

from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import parse_output
from hunyuan_train.families.grammar.hunyuan_a13b.tags import (
    ANSWER_CLOSE,
    THINK_CLOSE,
    THINK_OPEN,
    find_cut,
    has_no_think,
    is_thinking,
    parse_tags,
    write_tags,
)
from hunyuan_train.families.grammar.interface import TaggedText
from tests.data.dialogues import plain_text


@given(thoughts=plain_text, answer=plain_text)
def test_what_is_written_is_read_back_exactly(thoughts, answer):
    parsed = parse_tags(f"{THINK_OPEN}{thoughts}{THINK_CLOSE}{answer}{ANSWER_CLOSE}")
    assert parsed == TaggedText(thoughts, answer)


def test_an_empty_think_block_is_told_from_none():
    assert parse_tags("<think>\n\n</think>\n<answer>\nA\n</answer>").thoughts == ""
    assert parse_tags("A").thoughts is None


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nr.</think>\n<answer>\nA\n</answer>", "r.", "A"),
        ("<think>r</think><answer>A</answer>", "r", "A"),
        ("\n <think>\nr\n</think>\n\n<answer>\nA\n</answer>\n", "r", "A"),
        ("<think>\n\n</think>\n\nA", "", "A"),
        ("<think>\nr\n</think>\n\nA", "r", "A"),
        ("<think>\n \n</think>\n<answer>\nA\n</answer>", "", "A"),
        ("<answer>\nA\n</answer>", "", "A"),
        ("<THINK>r</THINK>\nA", "r", "A"),
    ],
)
def test_the_only_possible_reading_is_taken_and_said(text, thoughts, answer):
    parsed = parse_tags(text)
    assert (parsed.thoughts, parsed.answer) == (thoughts, answer)
    assert parsed.repair
    assert not parsed.error


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n\n<think>\n<answer>\nA\n</answer>",
        "<answer>\nA\n</answer>\n<think>\nr\n</think>",
        "<think>\nr\n</think>\n<answer>\nA\n</answer>\nand more",
        "<think>\nr\n</think>\n<answer>\nA\n</answer>B\n</answer>",
        "<think>a</think>A<think>b</think>B",
        "<think>a<think>b</think>A",
        "A</think><think>b</think>B",
        "Sure.\n<think>\na\n</think>\nA",
        "Sure.\n<think>\na",
        "A</answer> and more",
        "It is <answer>A</answer>, I think.",
        "<think>\nr\n</think>\n<answer>\n<think>x</think>A\n</answer>",
        "<think>\\nr\\n</think>\\nA",
        "```\n<think>r</think>A\n```",
    ],
)
def test_what_could_be_read_in_two_ways_is_an_error(text):
    assert parse_tags(text).error


@pytest.mark.parametrize(
    "text", ["Write <think> first.", "an <answer> tag", "1 < 2 and think> x", "Write `</think>`."]
)
def test_tags_talked_about_are_text(text):
    assert parse_tags(text) == TaggedText(None, text)


def test_thoughts_may_hold_a_closing_tag():
    text = "<think>\na </think> b\n</think>\n<answer>\nA\n</answer>"
    assert parse_tags(text) == TaggedText("a </think> b", "A")


@pytest.mark.parametrize(
    ("thoughts", "answer", "is_cut"),
    [
        ("r", "A", False),
        ("a </think> b", "A", False),
        ("a\n</think>\n<answer>\nb", "A", True),
        ("r", "A\n</answer>\nB", True),
        ("r", "</answer>", False),
        ("", "A </answer> B", False),
        ("r\n</think>", "A", False),
    ],
)
def test_a_cut_is_foreseen_where_a_served_answer_would_be_cut(thoughts, answer, is_cut):
    assert bool(find_cut(thoughts, answer)) == is_cut
    parsed = parse_output(f"{THINK_OPEN}{thoughts}{THINK_CLOSE}{answer}{ANSWER_CLOSE}")
    assert ((parsed.reasoning_content or "", parsed.content) != (thoughts, answer)) == is_cut


@pytest.mark.parametrize(
    ("query", "is_fast"),
    [
        ("/no_think Hi", True),
        ("/no_think请", True),
        (" /no_think Hi", True),
        ("Hi /no_think", False),
        ("/no_thinking", False),
    ],
)
def test_no_think_counts_before_the_query_with_or_without_a_blank(query, is_fast):
    assert has_no_think(query) == is_fast


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (write_tags("", "A"), False),
        (write_tags("well", "A"), True),
        ("<think>hm</think>A", True),
        ("<think>\nendless", True),
        ("A", False),
    ],
)
def test_thinking_is_seen_also_where_the_tags_are_wrong(output, expected):
    assert is_thinking(output) == expected
