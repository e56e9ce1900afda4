# ruff: noqa: RUF001  # the model writes these very characters
"""`parse_output` beside the parsers of vLLM and SGLang themselves: where they agree, where not."""

import json
import subprocess
from pathlib import Path

import pytest

from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import parse_output
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python
from tests.serve.parsers_of_engines import MARK

SCRIPT = Path(__file__).with_name("parsers_of_engines.py")
LEAK = "<tool_calls"  # the start of the tag, before vLLM knows it for one
CALL = (
    '<tool_calls>[{"name": "f", "arguments": {"城市": "北京", "days": [1, {"a": 2}]}}]</tool_calls>'
)
TWO = '<tool_calls>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "x"}]</tool_calls>'


def frame(answer: str, thoughts: str = "") -> str:
    return f"<think>\n{thoughts}\n</think>\n<answer>\n{answer}\n</answer>"


AGREED = [  # by vLLM 0.32.0 and us
    (frame("A", "r"), False),
    (frame("A"), False),
    (frame("中文。", "想一想。\n好"), False),
    (frame("A", "a</think>b"), False),
    (frame("A", "r") + "\n</answer>", False),
    ("<think>\nr\n</think>\n<answer>\nA", False),
    ("<think>\nendless", False),
    ("<answer>\nA\n</answer>", False),
    ("plain", False),
    (frame(CALL, "r"), True),
    (frame("I look." + CALL), True),
    (frame(TWO), True),
    (frame("<tool_calls>[{</tool_calls>"), True),
    (frame(CALL), False),
]


def call(arguments: str) -> str:
    return f'<tool_calls>[{{"name": "f", "arguments": {arguments}}}]</tool_calls>'


STREAMED = [  # and what vLLM makes of it, token by token: content, calls
    (CALL, ["", [["f", '{"城市": "北京", "days": [1, {"a": 2}]}']]]),
    (call('{"a": 1}') + " Behind.", ["", [["f", '{"a": 1}']]]),
    (
        '<tool_calls>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": 2}}]'
        "</tool_calls>",
        ["", [["f", '{"a": 1}'], ["g", '{"b": 2}']]],
    ),
    ("I look." + call('{"a": 1}'), ["I look." + call('{"a": 1}'), []]),
    (call('{"a": {"b": {"c": 1}}}'), ["", [["f", ""]]]),
    (call('"x"'), ["", [["f", ""]]]),
    (
        '<tool_calls>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"b": 2}}]'
        "</tool_calls>",
        ["", [["f", "{}"], ["g", "{}"]]],
    ),
    (call('{"a": "b}c"}'), ["", [["f", '{"a": "b}']]]),
]
OURS = {"behind": frame("Before." + CALL + " Behind.")}  # vLLM drops what stands behind calls


@pytest.fixture(scope="module")
def both() -> dict[str, list]:
    answers = [*AGREED, (OURS["behind"], True), (frame("助手：你好"), True)]
    given = {"tokenizer": str(TINY_TOKENIZER), "answers": answers}
    given["streamed"] = [text for text, _ in STREAMED]
    run = subprocess.run(
        [client_python("vllm"), SCRIPT],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [one for one in run.stdout.splitlines() if one.startswith(MARK)]
    found: dict[str, list] = json.loads(line.removeprefix(MARK))
    return found


@pytest.fixture(scope="module")
def parsed(both: dict[str, list]) -> list[dict[str, list[object]]]:
    return both["whole"]


def ours(text: str, has_tools: bool) -> list[object]:
    one = parse_output(text, has_tools=has_tools)
    return [one.reasoning_content, one.content, [list(call[:2]) for call in one.tool_calls]]


@pytest.mark.slow
def test_whole_answers_are_those_of_vllm(parsed: list[dict[str, list[object]]]) -> None:
    for (text, has_tools), row in zip(AGREED, parsed, strict=False):
        assert ours(text, has_tools) == row["vllm"], text


@pytest.mark.slow
def test_text_behind_calls_is_kept_here_and_dropped_by_vllm(
    parsed: list[dict[str, list[object]]],
) -> None:
    assert parsed[-2]["vllm"][1] == "Before."
    assert ours(OURS["behind"], True)[1] == "Before. Behind."
    assert ours(OURS["behind"], True)[2] == parsed[-2]["vllm"][2]


@pytest.mark.slow
def test_sglang_leaves_tags_in_and_loses_calls(parsed: list[dict[str, list[object]]]) -> None:
    assert parsed[0]["sglang"] == ["\nr\n", "\n<answer>\nA\n</answer>", []]
    assert parsed[9]["sglang"][2] == []
    assert "f" not in str(parsed[9]["sglang"][1])


@pytest.mark.slow
def test_streamed_calls_come_whole_from_vllm_but_for_those_that_are_known(
    both: dict[str, list],
) -> None:
    for (text, expected), found in zip(STREAMED, both["streamed"], strict=True):
        content = found[0].removeprefix(LEAK) if found[1] else found[0]
        assert [content, found[1]] == expected, text
        assert found[0].startswith(LEAK) == bool(found[1]), text
