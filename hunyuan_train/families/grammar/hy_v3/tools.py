"""Tools as Hy3 is told of them, and its calls: a name, then keys and values between tags."""

import json
import re
from typing import Any

from hunyuan_train.families.grammar.dialogue import ToolCall, dump_json
from hunyuan_train.families.grammar.hy_v3.markers import Markers


def write_tools_prompt(tools: list[Any], markers: Markers) -> tuple[str, str, str]:
    """What follows the system's text where tools are offered: the tools, and what is around."""
    listed = "\n".join(map(dump_json, tools))
    pair = "\n".join(
        f"{markers.key_open}{{arg-key-{number}}}{markers.key_close}\n"
        f"{markers.value_open}{{arg-value-{number}}}{markers.value_close}"
        for number in (1, 2)
    )
    before = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        "<tools>\n"
    )
    after = (
        "\n</tools>\n\n"
        f"For function call returns, you should first print {markers.calls_open}\n"
        "For each function call, you should return object like:\n"
        f"{markers.call_open}{{function-name}}{markers.separator}\n{pair}\n...\n"
        f"{markers.call_close}\n"
        f"At the end of function call returns, you should print {markers.calls_close}"
    )
    return before, listed, after


def read_offered(prompt: str, markers: Markers) -> list[Any]:
    """The tools that a prompt offers, out of its text; none where it offers none."""
    before, _, after = write_tools_prompt([], markers)
    opened, rest = prompt.partition(before)[1:]
    listed, closed, _ = rest.partition(after)
    try:
        return [json.loads(line) for line in listed.splitlines()] if opened and closed else []
    except ValueError:  # the words of the prompt, in a text of its own
        return []


def write_arguments(call: ToolCall) -> list[tuple[str, str]]:
    """Keys and values of a call as its form has them: texts as they are, all else as JSON.

    Raises:
        ValueError: the arguments are no JSON object.
    """
    arguments = json.loads(call.arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments of {call.name} are not a JSON object")
    return [
        (key, value if isinstance(value, str) else dump_json(value))
        for key, value in arguments.items()
    ]


def find_cut(arguments: str, markers: Markers) -> str:
    """Why a server would cut a call, whose form has no way to quote a tag; "" if it would not."""
    marks = (*markers.tags, markers.end)
    try:
        written = [part for pair in write_arguments(ToolCall("", arguments)) for part in pair]
    except ValueError:
        return ""  # found elsewhere
    found = next((mark for part in written for mark in marks if mark in part), "")
    return f"its arguments hold {found}, and the form of a call cannot quote it" if found else ""


def read_calls(text: str, markers: Markers) -> tuple[ToolCall, ...] | None:
    """The calls between the outer tags; None where they do not follow the form.

    A value is text or JSON, and without its function's schema nothing says which: what is JSON and
    no text is read as JSON.
    """
    one = (
        rf"\s*{re.escape(markers.call_open)}(.*?){re.escape(markers.separator)}(.*?)"
        rf"{re.escape(markers.call_close)}\s*"
    )
    if not re.fullmatch(f"(?:{one})+", text, re.DOTALL):
        return None
    pair = (
        rf"\s*{re.escape(markers.key_open)}(.*?){re.escape(markers.key_close)}\s*"
        rf"{re.escape(markers.value_open)}(.*?){re.escape(markers.value_close)}\s*"
    )
    calls = []
    for name, body in re.findall(one, text, re.DOTALL):
        if not name.strip() or not re.fullmatch(f"(?:{pair})*\\s*", body, re.DOTALL):
            return None
        arguments = {key: _read_value(value) for key, value in re.findall(pair, body, re.DOTALL)}
        calls.append(ToolCall(name.strip(), dump_json(arguments)))
    return tuple(calls)


def _read_value(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def split_calls(text: str, markers: Markers) -> tuple[str, object] | None:
    """What an answer says before its calls, and those as a list; None where it is not so."""
    before, opened, rest = text.partition(markers.calls_open)
    inside, closed, after = rest.rpartition(markers.calls_close)
    calls = read_calls(inside, markers) if opened and closed and not after.strip() else None
    if calls is None:
        return None
    listed = [{"name": one.name, "arguments": json.loads(one.arguments)} for one in calls]
    return before.strip(), listed
