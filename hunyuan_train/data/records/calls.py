"""The calls of an assistant's message, under whatever keys a record gives them.

A call has a name and arguments. Every other key of it is refused by name, so that nothing that its
author wrote is lost on the way to `{"name": …, "arguments": …}`.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.data.records.texts import has_blank_run
from hunyuan_train.data.records.turns import ARGUMENT_FIELDS, NOTHING, list_calls
from hunyuan_train.families.grammar.dialogue import ToolCall, dump_json
from hunyuan_train.families.grammar.interface import Grammar

Record = dict[str, Any]

# Where a message of the assistant has its calls; the first is ours.
CALL_FIELDS = ("tool_calls", "function_call", "function_calls", "tool_call")

_CALL_TYPES = (None, "function", "tool_use", "function_call", "tool_call")
_KEPT_KEYS = ("id", "call_id", "index")  # of no meaning to the model; conversion keeps them
_KEYS = ("type", "name", "function", *_KEPT_KEYS, *ARGUMENT_FIELDS)
_EXPECTED = 'give {"name": …, "arguments": {…}}'


def find_calls(raw: Record, place: str, problems: list[Problem]) -> tuple[object, str]:
    """The calls of a message as they are written, and their place; None where there are none."""
    fields = [field for field in CALL_FIELDS if raw.get(field) not in NOTHING]
    if not fields:
        return None, ""
    first = fields[0]
    for other in fields[1:]:
        if list_calls(raw[other]) != list_calls(raw[first]):
            reason = f"calls in {first} and {other}, which differ"
            problems.append(Problem("tools", f"{place}.{other}", reason, "keep one of them"))
    return raw[first], f"{place}.{first}"


def read_calls(
    calls: object, field: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> list[ToolCall] | None:
    """The calls, as well as they can be read."""
    listed = list_calls(calls)
    if not all(isinstance(call, dict) for call in listed):
        problems.append(Problem("tools", field, "calls that are not JSON objects", _EXPECTED))
        return [ToolCall("", "{}")]
    read = [
        _read_call(call, f"{field}[{index}]", grammar, as_written=as_written, problems=problems)
        for index, call in enumerate(listed)
    ]
    return (read or None) if not as_written else read


def _read_call(
    call: Record, field: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> ToolCall:
    function = _find_function(call)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        keys = ", ".join(list(function)[:6]) or "none"
        reason = f"a call without a function name; keys found: {keys}"
        problems.append(Problem("tools", field, reason, _EXPECTED))
        return ToolCall("", "{}")
    if has_blank_run(name):
        problems.append(Problem("size", f"{field}.name", "too many blanks", "shorten it"))
        return ToolCall("", "{}")
    if not as_written:
        _check_name(name, field, problems)
        _check_keys(call, function, name, field, problems)
    written = _write_arguments(call, function, field, as_written=as_written, problems=problems)
    if not as_written and (cut := grammar.tools.find_cut(written)):
        reason = f"a server would cut this call: {cut}"
        problems.append(Problem("tools", f"{field}.arguments", reason, "reword them"))
    if any(dump_json(character)[1:-1] in written for character in grammar.missing):
        reason = "arguments with a character that the vocabulary cannot encode"
        problems.append(Problem("normalised", f"{field}.arguments", reason, "left out", True))
    if has_blank_run(written):
        problems.append(Problem("size", f"{field}.arguments", "too many blanks", "shorten them"))
    read = ("type", "name", "function", *ARGUMENT_FIELDS)
    kept = ((key, value) for key, value in call.items() if key not in read)
    return ToolCall(name, written, tuple(kept))


def _find_function(call: Record) -> Record:
    """What holds the name: the object under `function`, or the call itself."""
    function = call.get("function")
    if isinstance(function, str) and function:  # the name, the arguments beside it
        return {"name": function}
    if function in NOTHING:
        return call
    return function if isinstance(function, dict) else {}


def _check_name(name: str, field: str, problems: list[Problem]) -> None:
    if dump_json(name) != f'"{name}"':
        reason = f"the function name {name!r} breaks the JSON of the call"
        problems.append(Problem("tools", field, reason, "leave quotes and backslashes out"))


def _check_keys(
    call: Record, function: Record, name: str, field: str, problems: list[Problem]
) -> None:
    """Refuse by name what would not reach the model."""
    unread = [key for key in call if key not in _KEYS and call[key] not in NOTHING]
    if function is not call:
        known = ("name", *ARGUMENT_FIELDS)
        unread += [
            f"function.{key}"
            for key in function
            if key not in known and function[key] not in NOTHING
        ]
    for key in unread:
        fix = "put it into the arguments or remove it, or choose call_field=note"
        problems.append(Problem("call_field", f"{field}.{key}", "not read of a call", fix))
    if call.get("type") not in _CALL_TYPES:
        reason = f"a call of type {call['type']!r}"
        problems.append(Problem("tools", f"{field}.type", reason, "only functions can be called"))
    if call.get("name") not in (None, "", name):
        reason = f"a call of {name!r} that is named {call['name']!r} beside it"
        problems.append(Problem("tools", f"{field}.name", reason, "keep one of them"))


def _write_arguments(
    call: Record, function: Record, field: str, *, as_written: bool, problems: list[Problem]
) -> str:
    """The arguments as JSON text, from the one place that holds them; "" where they are none."""
    places = [(f"{field}.{key}", call[key]) for key in ARGUMENT_FIELDS if key in call]
    if function is not call:
        inner = f"{field}.function"
        places += [(f"{inner}.{key}", function[key]) for key in ARGUMENT_FIELDS if key in function]
    if as_written:
        arguments = places[0][1] if places else {}
        return arguments if isinstance(arguments, str) else dump_json(arguments)
    found = [(place, _parse_arguments(value, place, problems)) for place, value in places]
    if any(arguments is None for _, arguments in found):
        return ""
    stated = [(place, arguments) for place, arguments in found if arguments]
    for place, arguments in stated[1:]:
        if arguments != stated[0][1]:
            reason = f"arguments here and at {stated[0][0]}, which differ"
            problems.append(Problem("tools", place, reason, "keep one of them"))
    return dump_json(stated[0][1] if stated else {})


def _parse_arguments(arguments: object, field: str, problems: list[Problem]) -> Record | None:
    if arguments is None:  # how a table fills those of a function that takes none
        return {}
    if isinstance(arguments, str):  # the OpenAI form; a client parses it before the template
        arguments = parse_json(arguments) if arguments.strip() else {}
    if isinstance(arguments, dict):
        return arguments
    reason = "arguments that are not a JSON object"
    problems.append(Problem("tools", field, reason, "fix the JSON"))
    return None
