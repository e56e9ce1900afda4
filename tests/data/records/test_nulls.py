"""Nulls that a table fills into calls and tools; those that are meant stay."""

import copy

import pytest

from hunyuan_train.data.records.nulls import drop_filled_nulls

TOOL = {
    "name": "find",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "day": {"type": ["string", "null"]},
            "hour": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "kind": {"enum": ["a", None]},
            "any": {"description": "whatever"},
            "where": {"type": "object", "properties": {"x": {"type": "number"}}},
            "free": {"type": "object"},
        },
        "required": ["must"],
    },
}


def _record(arguments, tool=TOOL):
    calls = [{"type": "function", "function": {"name": "find", "arguments": arguments}}]
    return {
        "tools": [copy.deepcopy(tool)],
        "messages": [{"role": "assistant", "tool_calls": calls}],
    }


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"city": "x", "other": None}, {"city": "x"}),
        ({"city": None}, {}),
        ({"where": {"x": None, "y": None}}, {"where": {}}),
        *(({name: None}, {name: None}) for name in ("day", "hour", "kind", "any", "must")),
        ({"free": {"x": None}}, {"free": {"x": None}}),
        ({"city": "", "day": 0}, {"city": "", "day": 0}),
    ],
)
def test_a_null_argument_is_left_out_where_the_schema_takes_none(arguments, kept):
    problems = []
    record = drop_filled_nulls(_record(arguments), problems)
    [call] = record["messages"][0]["tool_calls"]
    assert call["function"]["arguments"] == kept
    assert [problem.kind for problem in problems] == ["filled_nulls"] * (arguments != kept)


def test_a_schema_has_no_nulls_but_defaults_and_choices():
    properties = {"a": {"type": "string", "default": None, "enum": [None, "x"]}, "b": None}
    tool = {"name": "find", "description": None, "parameters": {"properties": properties}}
    problems = []
    [cleaned] = drop_filled_nulls(_record({}, tool), problems)["tools"]
    assert cleaned == {"name": "find", "parameters": {"properties": {"a": properties["a"]}}}
    assert problems[0].field == "tools[0].description, tools[0].parameters.properties.b"


@pytest.mark.parametrize("schema", ["parameters", "input_schema", "inputSchema"])
@pytest.mark.parametrize("field", ["tool_calls", "function_call", "function_calls", "tool_call"])
def test_calls_and_schemas_are_known_by_all_the_names_that_are_read(schema, field):
    call = {"name": "find", "function": None, "arguments": {"city": "x", "other": None}}
    record = {
        "tools": [{"name": "find", schema: TOOL["parameters"]}],
        "messages": [{"role": "assistant", field: [call] if field.endswith("s") else call}],
    }
    cleaned = drop_filled_nulls(record, [])["messages"][0][field]
    [only] = cleaned if isinstance(cleaned, list) else [cleaned]
    assert only["arguments"] == {"city": "x"}
