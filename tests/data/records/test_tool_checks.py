"""Calls against schemas, results against calls, and calls as the servers' parser reads them."""

from dataclasses import replace

import pytest

from hunyuan_train.data.findings import Problem, build_policies
from hunyuan_train.data.records import argument_schemas
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.families.grammar.find import find_grammar
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.segments import Rendering, Target
from tests.families.grammar.hy_v3.stand_in import special_ids, write_stand_in

NOW = "2026-03-02 09:15:00"
TRIP = {
    "type": "object",
    "properties": {
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "where": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["km", "mile"]},
            },
            "required": ["city"],
        },
        "price": {"type": "float"},
        "tags": {"type": "dict", "additionalProperties": {"type": "string"}},
        "spot": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/spot"}]},
    },
    "required": ["days"],
    "$defs": {"spot": {"type": "object", "properties": {"x": {"type": "number"}}}},
}


def _record(arguments: object, schema: object = TRIP, *, rest=(), mode="fast", name="trip"):
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "parameters": schema}}
    return {
        "mode": mode,
        "now": NOW,
        "tools": [tool],
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            *(rest or [{"role": "tool", "tool_call_id": "1", "content": "r"}]),
            {"role": "assistant", "content": "a"},
        ],
    }


def _problems(record, grammar=HUNYUAN_A13B) -> list[Problem]:
    problems: list[Problem] = []
    read_dialogue(record, Reading(grammar), problems)
    return problems


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"days": [1, 2]}, []),
        ({"days": [1, "2"]}, ["days[1]"]),
        ({"days": [0]}, ["days[0]"]),
        ({"days": [1], "where": {"city": "P", "unit": "km"}}, []),
        ({"days": [1], "where": {"city": "P", "unit": "inch"}}, ["where.unit"]),
        ({"days": [1], "where": {"unit": "km"}}, ["where"]),
        ({"days": [1], "where": {"city": "P", "town": "Q"}}, ["where"]),
        ({"days": [1], "price": 3}, []),
        ({"days": [1], "price": "3"}, ["price"]),
        ({"days": [1], "tags": {"a": "b"}}, []),
        ({"days": [1], "tags": {"a": 1}}, ["tags.a"]),
        ({"days": [1], "spot": {"x": 1.5}}, []),
        ({"days": [1], "spot": {"x": "left"}}, ["spot"]),
        ({"days": [1], "other": 1}, ["other"]),
    ],
)
def test_every_argument_is_checked_by_its_schema_to_the_bottom(arguments, named):
    found = [one for one in _problems(_record(arguments)) if one.kind == "odd_argument"]
    places = [one.field.partition(".arguments.")[2] for one in found]
    assert places == named


def test_a_schema_that_is_none_is_named_and_checks_nothing():
    schema = {"type": "object", "properties": {"days": {"type": "integer", "minimum": "one"}}}
    kinds = [one.kind for one in _problems(_record({"days": "x"}, schema))]
    assert kinds == ["tool_schema"]


NESTED = {"items": {"anyOf": [{"type": "int"}, {"type": ["str", "dat"]}]}}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"type": "strnig"}, "properties.other: the type 'strnig' is not known"),
        (NESTED, "properties.other.items.anyOf[1]: the type ['str', 'dat'] is not known"),
    ],
)
def test_a_type_that_nobody_knows_is_named_and_the_rest_is_checked(other, reason):
    schema = {"type": "object", "properties": {"days": {"type": "integer"}, "other": other}}
    found = {one.kind: one.reason for one in _problems(_record({"days": "x"}, schema))}
    assert found == {
        "tool_schema": reason,
        "odd_argument": "an argument that does not fit the schema of 'trip': "
        "'x' is not of type 'integer'",
    } | {kind: reason for kind, reason in found.items() if kind == "converted"}


def test_a_text_in_place_of_a_schema_is_named():
    found = {one.kind: one.reason for one in _problems(_record({"days": 1}, "none"))}
    assert found["tool_schema"] == "a string in place of a schema"


@pytest.mark.parametrize("named", ["any", "dict", "float", ["string", "null"], "String"])
def test_types_of_published_data_are_known(named):
    schema = {"properties": {"days": {"type": named}}}
    assert not [one for one in _problems(_record({}, schema)) if one.kind == "tool_schema"]


def test_a_schema_elsewhere_is_never_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # not called
    schema = {"properties": {"days": {"$ref": "https://example.org/days.json"}}}
    assert not [one for one in _problems(_record({"days": 1}, schema)) if one.kind != "converted"]


def test_a_schema_is_prepared_once_for_all_records():
    argument_schemas._find_validator.cache_clear()
    for day in range(5):
        _problems(_record({"days": [day + 1]}))
    assert argument_schemas._find_validator.cache_info().misses == 1


def test_a_call_that_nobody_answers_is_noted():
    question = {"role": "user", "content": "never mind"}
    found = [
        one
        for one in _problems(_record({"days": [1]}, rest=[question]))
        if one.kind == "tool_results"
    ]
    assert [one.reason for one in found] == ["0 result(s) of 1 call(s)"]


@pytest.mark.parametrize("mode", ["fast", "plain"])
@pytest.mark.parametrize("arguments", [{}, {"days": [1]}, {"days": [1], "tags": {"é": "“</b>\n”"}}])
def test_calls_that_a_server_reads_back_are_not_named(arguments, mode):
    kinds = {one.kind for one in _problems(_record(arguments, mode=mode))}
    assert "unparsed_calls" not in kinds


def _spoil(target: Target) -> Target:
    segments = [one._replace(text=one.text.replace("]</", "</")) for one in target.segments]
    return target._replace(segments=segments)


@pytest.mark.parametrize(
    ("name", "arguments", "kinds"),
    [
        ("trip", {"days": [1], "where": {"city": "P"}}, set()),
        ("trip", {"city": "5", "zip": "{}", "on": True, "far": "true"}, set()),
        ("trip ", {}, {"unparsed_calls"}),
        ("trip", {"city": " P\n"}, set()),
    ],
)
def test_hy3_reads_bare_values_by_their_schema_and_names_without_blanks(
    tmp_path, name, arguments, kinds
):
    grammar = find_grammar(write_stand_in(tmp_path / "hy3", special_ids()))
    found = {one.kind for one in _problems(_record(arguments, {}, name=name), grammar)}
    assert found == kinds


def test_calls_that_a_server_would_read_otherwise_are_refused():
    """A rendering that drops the last bracket, as a fault in a template does."""

    def render(dialogue, *, history="strip", loss="all") -> Rendering:
        whole = HUNYUAN_A13B.render(dialogue, history=history, loss=loss)
        return Rendering(whole.history, [_spoil(target) for target in whole.targets])

    found = _problems(_record({"days": [1]}), replace(HUNYUAN_A13B, render=render))
    assert [one.kind for one in found] == ["unparsed_calls"]
    assert found[0].field == "messages[1].tool_calls"
    assert build_policies().decide(found[0]) == "error"
