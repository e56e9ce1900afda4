# ruff: noqa: RUF001  # the model was trained on these very characters
"""The chat template in llama.cpp's own Jinja: the bytes are the same, and it sees the thinking."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from hunyuan_train.families.grammar.hunyuan_a13b.chat_template import CHAT_TEMPLATE
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from tests.clients.environments import client_python
from tests.data.dialogues import NOW, TWO_SLOW_TURNS, WEATHER, call, chat, read

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[3] / "clients" / "llamacpp_templates.py"
FAST_END = "<think>\n\n</think>\n"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 星期[一二三四五六日]")


def ask(template: str, requests: list[dict]) -> list:
    asked = json.dumps({"template": template, "requests": requests})
    answered = subprocess.run(
        [client_python("llamacpp"), SCRIPT], input=asked, capture_output=True, text=True, check=True
    )
    return json.loads(answered.stdout.splitlines()[-1])


def write(record: dict) -> str:
    dialogue = read(record, now=NOW, is_as_written=True)
    return "".join(segment.text for segment in render(dialogue, history="keep").sample(0))


def to_request(record: dict) -> dict:
    kept = {name: record[name] for name in ("messages", "tools") if name in record}
    options = record.get("kwargs") or record.get("chat_template_kwargs")
    return kept | ({"chat_template_kwargs": options} if options else {})


@pytest.mark.parametrize("asked", [{}, {"chat_template_kwargs": {"enable_thinking": True}}])
def test_a_request_thinks_unless_it_says_otherwise(asked: dict) -> None:
    requests = [
        chat("Hi", system="S") | asked,
        chat("Hi", system="S", chat_template_kwargs={"enable_thinking": False}),
        chat("Hi") | {"tools": [WEATHER]} | asked,
    ]
    thinking, fast, with_tools = ask(CHAT_TEMPLATE, requests)
    assert thinking == "<|startoftext|>S<|extra_4|>Hi<|extra_0|>"
    assert fast == thinking + FAST_END
    assert with_tools.endswith("用户：Hi<|extra_0|>")


def test_a_template_that_drops_thoughts_never_thinks_there() -> None:
    """What was exported before: the fault that these tests would see."""
    without = CHAT_TEMPLATE.replace("message.reasoning_content is string", "false")
    assert without != CHAT_TEMPLATE
    [prompt] = ask(without, [chat("Hi", system="S")])
    assert prompt.endswith(FAST_END)


def test_all_golden_vectors_have_the_bytes_of_the_renderer(golden: Path) -> None:
    lines = (golden / "thinking_public.jsonl").read_text(encoding="utf-8").splitlines()
    vectors = [json.loads(line) for line in lines]
    assert len(vectors) >= 40
    prompts = ask(CHAT_TEMPLATE, [to_request(one) for one in vectors])
    for vector, prompt in zip(vectors, prompts, strict=True):
        assert isinstance(prompt, str), (vector["name"], prompt)
        assert TIME.sub("NOW", prompt) == TIME.sub("NOW", vector["rendered"]), vector["name"]


ODD = {
    "two answers": {"messages": [*chat("a", "b")["messages"], chat("a", "c")["messages"][1]]},
    "blank system": chat("a", "b", system=" \n"),
    "parallel calls": {
        "tools": [WEATHER],
        "messages": [
            {"role": "system", "content": "只用工具"},
            {"role": "user", "content": "天气？"},
            {
                "role": "assistant",
                "content": "x",
                "tool_calls": [*call("巴黎")["tool_calls"], *call('O\'Fallon "x"')["tool_calls"]],
            },
            {"role": "tool", "content": '{"t": 1.50}'},
            {"role": "tool", "content": "晴"},
            {"role": "assistant", "content": "好"},
        ],
    },
}


@pytest.mark.parametrize("record", ODD.values(), ids=ODD)
def test_odd_dialogues_have_the_bytes_of_the_renderer(record: dict) -> None:
    [prompt] = ask(CHAT_TEMPLATE, [to_request(record)])
    assert TIME.sub("NOW", prompt) == TIME.sub("NOW", write(record))


def test_a_last_answer_with_thoughts_is_the_target_of_training() -> None:
    [prompt] = ask(CHAT_TEMPLATE, [to_request(TWO_SLOW_TURNS)])
    target = render(read(TWO_SLOW_TURNS)).sample(1)
    assert prompt == "".join(segment.text for segment in target)
