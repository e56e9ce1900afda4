"""Calls that an answer spells as text, in whatever form: they would be taught as prose.

Forms are without end, so a call is known by what it must hold: the name of a tool on offer, beside
arguments in JSON or in brackets.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from hunyuan_train.data.reading.decode import parse_json

_MAX_VALUES = 200  # JSON values that are tried in one text
_START = re.compile(r"[{\[]")
_DECODER = json.JSONDecoder()
# What an object may name the tool by that it calls with its other fields.
_NAME_KEYS = (
    "tool",
    "toolname",
    "function",
    "functionname",
    "action",
    "api",
    "apiname",
    "recipient",
)


def find_written_call(text: str, names: set[str]) -> str:
    """The name of a tool that a text calls; "" where it calls none."""
    said = {name for name in names if name and name in text}
    if not said:
        return ""
    for name in said:
        # w(city="P") and w {"city": "P"} anywhere; [w("P")], alone or in a fence
        word = rf"(?<![\w.])(?:functions?\.)?{re.escape(name)}"
        inside = rf"{word}\s*\(\s*(?:\w+\s*=(?!=)|\{{)|{word}[\s:*`]{{0,5}}(?:json\s*)?\{{\s*\""
        alone = rf"[\s`]*(?:python|tool_code|tool_call|json)?\s*\[?\s*{word}\s*\(.*\)\s*\]?[\s`;]*"
        if re.search(inside, text) or re.fullmatch(alone, text, re.DOTALL):
            return name
    objects = (found for value in _walk_values(text) for found in _walk_objects(value))
    return next((name for one in objects if (name := _name_called(one, said))), "")


def _walk_values(text: str) -> Iterator[object]:
    """The JSON objects and lists in a text, the outermost of each."""
    place = 0
    for _ in range(_MAX_VALUES):
        start = _START.search(text, place)
        if start is None:
            return
        try:
            value, place = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            place = start.end()
        else:
            yield value


def _walk_objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _walk_objects(item)


def _name_called(fields: dict[str, Any], names: set[str]) -> str:
    """The tool that an object calls: it names one, and holds arguments beside the name."""
    for key, value in fields.items():
        if key in names and isinstance(value, dict):  # {"w": {"city": "P"}}
            return key
        inner = value.values() if isinstance(value, dict) else [value]
        name = next((one for one in inner if isinstance(one, str) and one in names), "")
        others = [fields[other] for other in fields if other != key]
        is_key = re.sub(r"\W|_", "", key.lower()) in _NAME_KEYS and not isinstance(value, dict)
        if name and others and (is_key or any(map(_is_object, others))):
            return name
    return ""


def _is_object(value: object) -> bool:
    return isinstance(parse_json(value) if isinstance(value, str) else value, dict)
