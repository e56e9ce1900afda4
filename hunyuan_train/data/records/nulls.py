"""Nulls inside of calls and tools: a table fills in all the fields that any of its rows has.

A null argument may be meant, too. One is left out only where the schema of the tool knows no such
argument, or none that may be null; in a file of lines and in a table alike.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.calls import CALL_FIELDS
from hunyuan_train.data.records.turns import ARGUMENT_FIELDS

Json = Any

# Where a function has the schema of its arguments; the first is ours.
SCHEMA_FIELDS = ("parameters", "input_schema", "inputSchema", "args_schema", "arguments", "schema")
_MAY_BE_NULL = ("default", "const", "example")  # of a JSON schema


def drop_filled_nulls(record: dict[str, Json], problems: list[Problem]) -> dict[str, Json]:
    """A record in chat form without the nulls that its tools do not know.

    Each field that one was left out of goes to `problems`.
    """
    tools = record.get("tools")
    if not isinstance(tools, list):
        return record
    dropped: list[str] = []
    tools = [_clean_schema(tool, f"tools[{number}]", dropped) for number, tool in enumerate(tools)]
    schemas = dict(_find_schema(tool) for tool in tools)
    messages = [
        _clean_calls(message, schemas, f"messages[{number}]", dropped)
        for number, message in enumerate(record["messages"])
    ]
    if not dropped:
        return record
    reason = "nulls where the tool takes none, as tables fill them in"
    problems.append(Problem("filled_nulls", ", ".join(dropped), reason, "left out", True))
    return {**record, "tools": tools, "messages": messages}


def _clean_schema(value: Json, place: str, dropped: list[str]) -> Json:
    """A tool without nulls; a schema means something by one only as a default or a constant."""
    if isinstance(value, list):
        return [_clean_schema(one, f"{place}[{n}]", dropped) for n, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if inner is None and key not in _MAY_BE_NULL:
            dropped.append(f"{place}.{key}")
        else:
            kept[key] = _clean_schema(inner, f"{place}.{key}", dropped)
    return kept


def _find_schema(tool: Json) -> tuple[str, Json]:
    """The name of a tool and the schema of its arguments, as far as they can be found."""
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    function = function if isinstance(function, dict) else {}
    schemas = [function[key] for key in SCHEMA_FIELDS if isinstance(function.get(key), dict)]
    return str(function.get("name")), schemas[0] if schemas else None


def _clean_calls(message: Json, schemas: dict[str, Json], place: str, dropped: list[str]) -> Json:
    if not isinstance(message, dict):
        return message
    cleaned = dict(message)
    for field in (one for one in CALL_FIELDS if one in message):
        calls = message[field]
        cleaned[field] = (
            [
                _clean_call(call, schemas, f"{place}.{field}[{number}]", dropped)
                for number, call in enumerate(calls)
            ]
            if isinstance(calls, list)
            else _clean_call(calls, schemas, f"{place}.{field}", dropped)
        )
    return cleaned


def _clean_call(call: Json, schemas: dict[str, Json], place: str, dropped: list[str]) -> Json:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _clean_call(call["function"], schemas, place, dropped)}
    schema = schemas.get(str(call.get("name")))
    return {
        key: _clean_arguments(value, schema, f"{place}.{key}", dropped)
        if key in ARGUMENT_FIELDS
        else value
        for key, value in call.items()
    }


def _clean_arguments(value: Json, schema: Json, place: str, dropped: list[str]) -> Json:
    """Arguments without the nulls that their schema knows no field for, or no null."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        items = schema.get("items")
        return [
            _clean_arguments(one, items, f"{place}[{number}]", dropped)
            for number, one in enumerate(value)
        ]
    fields = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(fields, dict):
        return value  # a schema that is silent: what is written is meant
    required = schema.get("required") or ()
    kept = {}
    for key, inner in value.items():
        if inner is None and key not in required and not allows_null(fields.get(key)):
            dropped.append(f"{place}.{key}")
        else:
            kept[key] = _clean_arguments(inner, fields.get(key), f"{place}.{key}", dropped)
    return kept


def allows_null(schema: Json) -> bool:
    """Whether a field of this schema may be null; a field that is not listed may not."""
    if not isinstance(schema, dict):
        return schema is True
    if "type" in schema:
        kinds = schema["type"]
        return "null" in (kinds if isinstance(kinds, list) else [kinds])
    choices = [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]
    if choices:
        return any(allows_null(choice) for choice in choices[0])
    if isinstance(schema.get("enum"), list):
        return None in schema["enum"]
    return True  # it says nothing of a type
