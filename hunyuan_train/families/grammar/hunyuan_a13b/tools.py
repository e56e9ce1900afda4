# ruff: noqa: RUF001  # the model was trained on these very characters
"""The prompt in which the model's chat template wraps tools, and the marks around calls."""

import json
import re
from datetime import datetime
from typing import Any

from hunyuan_train.families.grammar.dialogue import TIME_FORMAT, dump_json
from hunyuan_train.families.grammar.tokenizer import to_nfc

# What stands before a speaker's text in dialogues with tools.
USER_LABEL = "用户："
ASSISTANT_LABEL = "助手："

TOOL_CALLS_OPEN = "<tool_calls>"
TOOL_CALLS_CLOSE = "</tool_calls>"
RESPONSE_OPEN = "<tool_response>"
RESPONSE_CLOSE = "</tool_response>"

_TEXT_CALLS = re.compile(rf"(.*?){TOOL_CALLS_OPEN}(\[.*\]){TOOL_CALLS_CLOSE}\s*", re.DOTALL)

_CALL_FORMAT = (
    f'{TOOL_CALLS_OPEN}[{{"name": "func_name1", "arguments": {{"argument1": "value1", '
    f'"argument2": "value2"}}}},...]{TOOL_CALLS_CLOSE}'
)
_HEAD = (
    "你是一位函数组合专家。你会得到一个问题和一组可能的函数。根据问题，你需要进行一个或多个函数/工具调用以实现目的。\n"
    "如果没有一个函数可以使用，请直接使用自然语言回复用户，以助手：开头。\n"
    "如果给定的问题缺少函数所需的参数，请使用自然语言进行提问，向用户询问必要信息，以助手：开头。\n"
    "如果调用结果已经足够回答用户问题，请对历史结果进行总结，使用自然语言回复用户，以助手：开头。\n"
    "你应该只在工具调用部分返回函数调用。如果你决定调用任何函数，你必须将其格式化为"
    f"{_CALL_FORMAT}。你不应该在回复中包含任何其他文本。以下是你可以调用的函数列表，格式为JSON。\n\n"
)
_SYSTEM_HEAD = "额外要求：\n"
_CALL_RULE = f"如果你决定返回函数调用，请将其格式化为{_CALL_FORMAT}，不得包含其他文本。"
_SYSTEM_FORMAT_RULE = "如果额外要求里有格式要求，请忽略，以此处为准。"
_REPLY_RULE = "\n否则，请参考开头说的三种情况，以助手：开头进行回复。\n\n"
_SYSTEM_TIME_RULE = "如果额外要求里有时间信息，就以额外要求里的时间为准，否则，参考"
_NOW_LABEL = "当前时间："
WEEKDAYS = "一二三四五六日"


def write_tools_prompt(tools: list[Any], now: str, *, system: str | None = None) -> str:
    """What comes before the first question where tools are given, the system message inside."""
    weekday = WEEKDAYS[datetime.strptime(now, TIME_FORMAT).weekday()]
    time = f"{_NOW_LABEL}{now} 星期{weekday}"
    head = f"{_HEAD}{to_nfc(dump_json(tools))}\n\n"
    if system is None:
        return f"{head}{_CALL_RULE}{_REPLY_RULE}{time}"
    extra = f"{_SYSTEM_HEAD}{system}\n\n{_CALL_RULE}{_SYSTEM_FORMAT_RULE}{_REPLY_RULE}"
    return f"{head}{extra}{_SYSTEM_TIME_RULE}{time}"


def read_offered(prompt: str) -> list[Any]:
    """The tools that a prompt offers, out of its text; none where it offers none."""
    listed = prompt.partition(_HEAD)[2]
    try:
        tools = json.JSONDecoder().raw_decode(listed)[0] if listed else []
    except ValueError:  # the words of the prompt, in a text of its own
        return []
    return tools if isinstance(tools, list) else []


def split_calls(text: str) -> tuple[str, str] | None:
    """What an answer says before its calls, and their JSON; None where it is not of that form."""
    if TOOL_CALLS_CLOSE not in text:
        return None
    match = _TEXT_CALLS.fullmatch(text)
    return (match[1].strip(), match[2]) if match else None


def find_cut(arguments: str) -> str:
    """Why a server, which stops at the first closing tag, would cut a call; "" if it would not."""
    return f"its arguments hold {TOOL_CALLS_CLOSE}" if TOOL_CALLS_CLOSE in arguments else ""


def are_offered(answer: str) -> bool:
    """Whether an answer's own text shows that its prompt offered tools."""
    return answer.startswith(ASSISTANT_LABEL) or TOOL_CALLS_OPEN in answer
