"""Calls, roles, forms and loss fields, as public data sets and other tools write them."""

import copy
import json

import pytest

from hunyuan_train.data.findings import Problem, build_policies
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import read_chunks
from hunyuan_train.data.records.calls import CALL_FIELDS
from hunyuan_train.data.records.convert import to_record
from hunyuan_train.data.records.forms import THOUGHT_FIELDS
from hunyuan_train.data.records.loss import RECORD_LOSS_FIELDS
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.records.tools import RESULT_ID_FIELDS, RESULT_NAME_FIELDS
from hunyuan_train.data.records.turns import ARGUMENT_FIELDS, CALL_SPEAKERS, SPEAKERS
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from tests.data.conftest import REPOSITORY
from tests.data.dialogues import NOW, chat, kinds_of

FOLDER = REPOSITORY / "tests" / "cases"
DECIDE = build_policies().decide

# For each record of a file what is read: the turns with their calls, `-` on an answer without loss,
# thoughts in brackets; or the kinds of finding that refuse it.
OUTCOMES: dict[str, list] = {
    "a01_swift_history": [
        "s Be terse. | u Area of a 2 by 3 rectangle? | a 6. | u Perimeter of it? | a 10. "
        "| u And of a square with that side? | a 16."
    ],
    "a02_swift_loss_false": ["u q1 | a- bad reply | u q2 | a good reply"],
    "a05_axolotl_sharegpt_train": ["u q1 | a- bad | u q2 | a good"],
    "a06_openai_weight0": ["u q1 | a- bad | u q2 | a good"],
    "a22_input_output_list": [{"form"}],
    "a23_capital_fields": [{"form"}],
    "a24_input_reasoning_content": [{"form"}],
    "a25_from_content": ["u hi | a hello"],
    "a27_mixed_roles": ["s S | u hi | a hello"],
    "a29_gpt_first": [{"order"}],
    "a30_anthropic": ['u weather? | a (call) Looking.w{"c": "x"} | t sunny | a Sunny.'],
    "a32_content_and_calls": ['u weather in x? | a I will look.w{"c": "x"} | t sunny | a Sunny.'],
    "a33_args_string": ['u weather in x? | a w{"c": "x"} | t sunny | a Sunny.'],
    "a35_function_call_old": ['u weather in x? | a w{"c": "x"} | t sunny | a Sunny.'],
    "a36_sharegpt_tools": ['u weather in x? | a w{"c": "x"} | t sunny | a Sunny.'],
    "a38_swift_tool_roles": ['u weather in x? | a Let me see.w{"c": "x"} | t sunny | a Sunny.'],
    "a39_tool_then_user": ['u weather in x? | a w{"c": "x"} | t sunny | u and be brief | a Sunny.'],
    "a40_tool_without_call": [{"tools", "order"}],
    "a41_tools_in_system": [{"tools", "foreign_markers"}],
    "a44_nulls_everywhere": ["s S | u q | a (r) a"],
    "a45_alpaca_history": ["u 2+2? | a 4 | u And 3+3? | a 6"],
    "a51_preference": [{"form"}],
    "a52_preference_msgs": [{"unread_text"}],
    "a53_consecutive_assistant": [{"repeated_role"}],
    "a54_empty_system": ["u hi | a hello"],
    "a55_specials": ["u what is <|eos|> and <|extra_0|>? | a A <|eos|> mark."],
    "a59_input_output_str": [{"form"}],
    "a60_text_only": [{"foreign_markers"}],
    "a61_dup_ids": ["u a | a b", "u c | a d"],
    "a63_parallel_calls_swift": [
        'u w x,y? | a w{"c": "x"}w{"c": "y"} | t sun | t rain | a Sun; rain.'
    ],
    "a65_conversation_dict": ["u hi | a hello | u bye | a see you"],
    "a66_conversation_input_output": ["s S | u hi | a hello | u bye | a see you"],
    "a67_prompt_chat_completion_chat": ["s S | u 2+2? | a (Add.) 4"],
    "a70_developer_role": ["s S | u hi | a hello"],
    "b12_tool_result_dict": ['u w? | a w{"c": "x"} | t {"t": 3, "s": "晴"} | a Sunny.'],
    "b13_slow_tools": ['u w? | a (need tool) w{"c": "x"} | t sunny | a (done) Sunny.'],
    "b14_slow_tools_only_last": ['u w? | a w{"c": "x"} | t sunny | a (done) Sunny.'],
    "b15_args_bad_json": [{"tools"}],
    "b16_args_double_encoded": [{"tools"}],
    "b17_tools_empty_string": ["u hi | a hello", "u hi2 | a hello", "u hi3 | a hello"],
    "b18_tools_list_of_strings": ['u w? | a w{"c": "x"} | t s | a S.'],
    "b19_mixed_schemas": ["u a | a b", "u c | a d", "u e | a f", "u g | a h"],
    "b20_messages_and_prompt": ["u 2+2? | a 4"],
    "b21_messages_json_string": ["u a | a b"],
    "b22_messages_python_repr": [{"form"}],
    "b23_system_in_record_and_messages": [{"system"}],
    "b24_system_only_record_msgs": ["s S1 | u a | a b"],
    "b25_system_prompt_field": ["s S1 | u a | a b"],
    "b26_prompt_empty_answer": [{"empty_answer"}],
    "b27_answer_beats_response": [{"unread_text", "tags"}],
    "b28_trailing_user": ["u a | a b"],
    "b29_tool_name_mismatch": [{"tools"}],
    "b30_toplevel_weight": [{"no_answer"}],
    "b31_loss_mask_field": ["u a | a- b1 | u c | a b2"],
    "b32_train_on_inputs_user": [{"prompt_loss"}],
    "b33_all_weight0": [{"no_answer"}],
    "b34_train_null": ["u a | a b"],
    "b46_openai_multi_system": [{"system"}],
    "b47_name_field": ["u a | a b"],
    "d01_messages_null_prompt": ["u q | a a"],
    "d04_environment_role": [{"tools"}],
    "d06_tool_call_role_args": ['u w? | a (look) w{"c": "x"} | t s | a (ok) S.'],
    "d08_role_from_content": ["u hi | a hello"],
    "d09_from_content_null_value": ["u hi | a hello"],
    "d16_vendor_tool_calls_bad_json": [{"tools"}],
    "d32_top_messages_system_prompt_key": ["s S | u a | a b"],
    "d33_conversation_id_hash": ["u a | a b"],
    "d34_input_messages_output": [{"form"}],
    "d35_messages_output": ["u a | a b"],
    "d36_messages_completion": ["u a | a b"],
    "d38_conversations_str": ["u a | a b"],
    "e01_eval_dup_question": ["u a | a b", "u a | a c"],
    "e03_sharegpt_system_turn_and_field": [{"system"}],
    "e04_sharegpt_tools_in_system_only": [{"tools"}],
    "e05_prompt_msgs_response_msgs_dict": ["u q | a a"],
    "e11_user_content_image_part_null_text": [{"content_type"}],
    "e13_assistant_refusal_null_content": [{"unread_text", "empty_answer"}],
    "e14_assistant_audio_null": ["u q | a a"],
    "e15_toolcalls_with_index": ['u w? | a w{"c": "x"} | t s | a S.'],
    "e16_results_out_of_order": ['u w? | a w{"c": "x"}w{"c": "y"} | t for x | t for y | a S.'],
    "e17_arguments_key_params": ['u w? | a w{"c": "x"} | t s | a S.'],
    "e19_sharegpt_function_call_parameters": ['u w? | a w{"c": "x"} | t s | a S.'],
    "e20_anthropic_tools_schema": ['u w? | a w{"c": "x"} | t s | a S.'],
    "e21_tools_dict_name_keyed": [{"tools"}],
    "e22_tools_no_calls_text_list": [{"tools"}],
    "e23_tools_type_function_null_function": ["u hi | a x"],
    "e25_arg_type_wrong": ['u w? | a w{"c": 3, "unknown": 1} | t s | a S.'],
    "f05_both_tool_calls_and_function_call": ['u w? | a w{"c": "x"} | t s | a S.'],
    "f07_args_int_keys_nested_null": [{"missing_argument"}],
    "f08_user_name_multi_party": ["u hi | a hello | u hey | a hi Bob"],
    "f09_content_and_text": ["u hi | a hello"],
    "f10_tool_results_tool_calls_null_arg_string": [{"missing_argument"}],
}


def _write(dialogue) -> str:
    """A dialogue in one line."""
    turns = []
    for message in dialogue.messages:
        text = HUNYUAN_A13B.queries.strip(message.content)
        text = f"({message.thoughts}) {text}" if message.thoughts else text
        text += "".join(f"{call.name}{call.arguments}" for call in message.tool_calls or ())
        mark = "" if message.is_trained else "-"
        turns.append(f"{message.role[0]}{mark} {text}")
    return " | ".join(turns)


def _outcome(value: object, problems: list[Problem] | None = None) -> str | set[str]:
    """What is read of a record, or the kinds that refuse it; a mode is what others test."""
    problems = [] if problems is None else problems
    dialogue = read_dialogue(value, Reading(HUNYUAN_A13B), problems)
    kinds = {one.kind for one in problems if DECIDE(one) == "error"} - {"untagged"}
    return kinds or _write(dialogue)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_given_file_has_its_right_outcome(name):
    raws = [raw for chunk in read_chunks(FOLDER / f"{name}.jsonl") for raw in chunk.records]
    assert [_outcome(decode_record(raw, [])) for raw in raws] == OUTCOMES[name]


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_given_file_reads_the_same_once_it_is_converted(name):
    for chunk in read_chunks(FOLDER / f"{name}.jsonl"):
        for value in (decode_record(raw, []) for raw in chunk.records):
            if isinstance(expected := _outcome(value), set):
                continue
            dialogue = read_dialogue(value, Reading(HUNYUAN_A13B), [])
            record = json.loads(json.dumps(to_record(dialogue, HUNYUAN_A13B)))
            assert _outcome(record) == expected
            assert not kinds_of(record) & {"converted", "role", "result_order"}


def test_choices_beside_a_question_are_refused():
    record = decode_record((FOLDER / "a21_choices.jsonl").read_bytes(), [])
    assert "unread_text" in _outcome(record)


# calls

SCHEMA = {"type": "object", "properties": {"c": {"type": "string"}}, "required": ["c"]}
W = {"type": "function", "function": {"name": "w", "description": "d", "parameters": SCHEMA}}
Z = {"type": "function", "function": {"name": "z", "parameters": {"type": "object"}}}
X = {"c": "x"}


def _with_message(message, *results, tools=(W, Z)):
    messages = [{"role": "user", "content": "q"}, message, *results]
    if results:
        messages.append({"role": "assistant", "content": "a"})
    return {"tools": list(tools), "now": NOW, "mode": "fast", "messages": messages}


def _with_calls(*calls, **fields):
    message = {"role": "assistant", "content": "", "tool_calls": list(calls)}
    return _with_message(message, *fields.pop("results", ()), **fields)


def _result(content, **fields):
    return {"role": "tool", "content": content, **fields}


@pytest.mark.parametrize("key", ARGUMENT_FIELDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda key, args: {"name": "w", key: args},
        lambda key, args: {"type": "function", "function": {"name": "w", key: args}},
        lambda key, args: {"type": "function", "function": {"name": "w"}, key: args},
        lambda key, args: {"function": "w", key: args},
        lambda key, args: {"function": {"name": "w", "arguments": None}, key: args},
        lambda key, args: {"function": {"name": "w", "arguments": "{}"}, key: args},
        lambda key, args: {"type": "tool_use", "id": "t", "name": "w", key: args},
    ],
)
@pytest.mark.parametrize("arguments", [X, json.dumps(X)])
def test_arguments_are_read_under_every_name(make, key, arguments):
    assert _outcome(_with_calls(make(key, arguments))) == 'u q | a w{"c": "x"}'


@pytest.mark.parametrize("field", CALL_FIELDS)
@pytest.mark.parametrize(
    "calls",
    [
        [{"name": "w", "arguments": X}],
        {"name": "w", "arguments": X},
        json.dumps([{"name": "w", "arguments": X}]),
    ],
)
def test_calls_are_read_under_every_name_and_beside_empty_ones(field, calls):
    empty = {other: nothing for other in CALL_FIELDS for nothing in (None, []) if other != field}
    message = {"role": "assistant", "content": None, **empty, field: calls}
    assert _outcome(_with_message(message)) == 'u q | a w{"c": "x"}'
    other = {"role": "assistant", "content": None, "tool_calls": [{"name": "z"}], field: calls}
    if field != "tool_calls":
        assert _outcome(_with_message(other)) == {"tools"}


@pytest.mark.parametrize("speaker", CALL_SPEAKERS)
@pytest.mark.parametrize("key", ["role", "from"])
@pytest.mark.parametrize(
    "call",
    [
        {"content": '{"name": "w", "arguments": {"c": "x"}}'},
        {"value": '[{"name": "w", "parameters": {"c": "x"}}]'},
        {"content": {"name": "w", "input": X}},
        {"name": "w", "arguments": X},
        {"content": "", "function": {"name": "w", "arguments": X}},
    ],
)
def test_a_turn_that_is_a_call_joins_the_answer_before_it(speaker, key, call):
    text = {key: "assistant", "content": "Wait."}
    record = _with_message(text, {key: speaker, **call}, {key: speaker, **call})
    record["messages"].pop()
    assert _outcome(record) == 'u q | a Wait.w{"c": "x"}w{"c": "x"}'
    apart = _with_message(text, {key: speaker, **call, "loss": False})
    assert _outcome(apart) == {"repeated_role"}


def test_items_of_openais_responses_are_read():
    call = {"type": "function_call", "call_id": "1", "name": "w", "arguments": json.dumps(X)}
    result = {"type": "function_call_output", "call_id": "1", "output": "sun"}
    assert _outcome(_with_message(call, result)) == 'u q | a w{"c": "x"} | t sun | a a'


@pytest.mark.parametrize(
    ("call", "kinds", "named"),
    [
        ({"name": "w", "arguments": X, "note": "n"}, {"call_field"}, "note"),
        ({"function": {"name": "w", "arguments": X, "why": "n"}}, {"call_field"}, "function.why"),
        ({"w": X}, {"tools"}, "tool_calls[0]"),
        ({"tool": "w", "arguments": X}, {"tools"}, "tool_calls[0]"),
        ({"type": "custom", "name": "w", "input": X}, {"tools"}, "type"),
        ({"name": "z", "function": {"name": "w", "arguments": X}}, {"tools"}, "name"),
        ({"name": "w", "arguments": X, "input": {"c": "y"}}, {"tools"}, "input"),
        ({"name": "w", "arguments": [X]}, {"tools"}, "arguments"),
        ({"name": "w", "arguments": "c=x"}, {"tools"}, "arguments"),
        ({"name": "w"}, {"missing_argument"}, "arguments.c"),
        ({"name": "w", "arguments": {"c": None}}, {"missing_argument"}, "arguments.c"),
        ({"name": "v", "arguments": X}, {"tools"}, "tool_calls"),
        ({"id": "1", "call": {"name": "w", "arguments": X}}, {"tools"}, "tool_calls[0]"),
        ("w(c='x')", {"tools"}, "tool_calls"),
        (None, {"tools"}, "tool_calls"),
    ],
)
def test_what_a_call_says_beyond_name_and_arguments_is_refused_by_name(call, kinds, named):
    problems: list[Problem] = []
    assert _outcome(_with_calls(call), problems) == kinds
    assert any(one.field.endswith(named) for one in problems if one.kind in kinds)


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        ('{"name": "w", "arguments": {"c": "x"}}', True),
        ('\n[{"name": "w", "parameters": {"c": "x"}}]', True),
        ('{"function": {"name": "w"}, "arguments": {}}', True),
        ('{"name": "w", "arguments": "{\\"c\\": 1}"}', True),
        ('{"tool_calls": [{"name": "w", "arguments": {"c": "x"}}]}', True),
        ('{"action": "w", "action_input": "x"}', True),
        ('{"tool": "w", "params": ["x"]}', True),
        ('{"Tool Name": "w", "c": "x"}', True),
        ('{"w": {"c": "x"}}', True),
        ('```json\n{"name": "w", "arguments": {"c": "x"}}\n```', True),
        ('Let me call: {"name": "w", "arguments": {"c": "x"}} Wait.', True),
        ('I [1] do {so}:\n```json\n{"name": "w", "arguments": {}}\n```', True),
        ('[w(c="x")]', True),
        ('w(c="x")', True),
        ("w('x')", True),
        ("```python\nw()\n```", True),
        ('I call w(c="x") now', True),
        ("functions.w({'c': 'x'})", True),
        ('Tool w\n{"c": "x"}', True),
        ('w: {"c": "x"}', True),
        ('{"name": "other", "arguments": {}}', False),
        ('{"name": "w"}', False),
        ('{"city": "w", "size": 3}', False),
        ("[1, 2]", False),
        ("{not json", False),
        ("{" * 5000 + "w", False),
        ("w (the weather) is sunny, w.", False),
        ('The row (c="x") and sw(c="x")', False),
    ],
)
def test_a_call_that_an_answer_spells_as_text_is_refused(text, is_call):
    problems: list[Problem] = []
    outcome = _outcome(_with_message({"role": "assistant", "content": text}), problems)
    assert outcome == ({"foreign_markers"} if is_call else f"u q | a {text}")
    assert not is_call or "'w'" in problems[-1].reason
    without_tools = _outcome(_with_message({"role": "assistant", "content": text}, tools=[]))
    assert without_tools == f"u q | a {text}"


WRITTEN = '<tool_calls>[{"name": "w", "arguments": {"c": "x"}}]</tool_calls>'


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN.removesuffix("</tool_calls>"),
        WRITTEN.removeprefix("<tool_calls>"),
        f"{WRITTEN} done",
        f"I look. {WRITTEN} done",
        f"{WRITTEN}{WRITTEN}",
        '<tool_calls>{"name": "w", "arguments": {"c": "x"}}</tool_calls>',
        "<tool_calls></tool_calls>",
        "<tool_calls>[not json]</tool_calls>",
    ],
)
def test_marks_of_calls_that_hold_no_calls_are_refused(text):
    assert "tools" in _outcome(_with_message({"role": "assistant", "content": text}))


def test_calls_as_text_are_read_alone_and_refused_beside_others():
    for text, said in ((WRITTEN, ""), (f"I look.\n{WRITTEN}\n", "I look.")):
        message = {"role": "assistant", "content": text}
        assert _outcome(_with_message(message)) == f'u q | a {said}w{{"c": "x"}}'
        message["tool_calls"] = [{"name": "w", "arguments": X}]
        assert _outcome(_with_message(message)) == {"tools"}
    talk = "Calls stand in `<tool_calls>`."
    assert _outcome(_with_message({"role": "assistant", "content": talk})) == f"u q | a {talk}"


def test_a_result_in_a_record_without_tools_is_refused():
    message = {"role": "assistant", "content": WRITTEN}
    assert _outcome(_with_message(message, _result("r"), tools=[])) == {"tools"}


@pytest.mark.parametrize(
    ("arguments", "schema", "named"),
    [
        ({"c": 3}, SCHEMA, ["c"]),
        ({"c": "x", "d": 1}, SCHEMA, ["d"]),
        ({"c": "x", "d": 1}, {**SCHEMA, "additionalProperties": True}, []),
        ({"c": True}, {"properties": {"c": {"type": "integer"}}}, ["c"]),
        ({"c": 2.0}, {"properties": {"c": {"type": "integer"}}}, []),
        ({"c": "m"}, {"properties": {"c": {"enum": ["l", "r"]}}}, ["c"]),
        ({"c": [1]}, {"properties": {"c": {"type": ["array", "null"]}}}, []),
        ({"c": "x"}, {"properties": {"c": {"type": "str"}}}, []),
        ({"c": "x"}, {"c": {"type": "int"}}, []),
    ],
)
def test_an_argument_that_does_not_fit_its_schema_is_named(arguments, schema, named):
    tool = {"type": "function", "function": {"name": "w", "parameters": schema}}
    problems: list[Problem] = []
    _outcome(_with_calls({"name": "w", "arguments": arguments}, tools=[tool]), problems)
    odd = [one.field.rpartition(".")[2] for one in problems if one.kind == "odd_argument"]
    assert odd == named


@pytest.mark.parametrize(
    ("schema", "is_missing"),
    [
        ({"properties": {"c": {"type": "string", "required": True}}}, True),
        ({"properties": {"c": {"type": ["string", "null"]}}, "required": ["c"]}, True),
        ({"required": ["c"]}, True),
        ({"required": "c"}, True),
        ({"$ref": "#/$defs/C", "$defs": {"C": {"required": ["c"]}}}, True),
        ({"$ref": "#"}, False),
        ({"allOf": [{"required": ["c"]}, {}]}, True),
        ({"anyOf": [{"required": ["c"]}, {"required": ["c", "d"]}]}, True),
        ({"oneOf": [{"required": ["c"]}, {"required": ["d"]}]}, False),
        ({"json": {"required": ["c"]}}, True),
        (None, False),
    ],
)
def test_what_is_required_is_read_of_the_schema(schema, is_missing):
    tool = {"type": "function", "function": {"name": "w", "parameters": schema}}
    kinds = kinds_of(_with_calls({"name": "w", "arguments": {}}, tools=[tool]))
    assert ("missing_argument" in kinds) == is_missing


@pytest.mark.parametrize(
    "field", ["input_schema", "inputSchema", "args_schema", "arguments", "schema"]
)
def test_what_is_required_is_read_under_every_name_of_the_schema(field):
    for fields in ({field: SCHEMA}, {field: {"json": SCHEMA}}, {field: json.dumps(SCHEMA)}):
        record = _with_calls({"name": "w", "arguments": {}}, tools=[{"name": "w", **fields}])
        assert _outcome(record) == {"missing_argument"}
    beside = {"name": "w", "parameters": {"properties": {"c": {}}}, "required": ["c"]}
    record = _with_calls({"name": "w", "arguments": {}}, tools=[beside])
    assert _outcome(record) == {"missing_argument"}


@pytest.mark.parametrize(
    ("schema", "is_missing"),
    [({"type": "string"}, True), ({"type": ["string", "null"]}, False), ({}, False), (None, True)],
)
def test_a_null_stands_for_a_required_argument_where_its_schema_takes_one(schema, is_missing):
    schemas = {"properties": {"c": schema, "d": {}}, "required": ["c"]}
    tool = {"type": "function", "function": {"name": "w", "parameters": schemas}}
    kinds = kinds_of(_with_calls({"name": "w", "arguments": {"c": None}}, tools=[tool]))
    assert ("missing_argument" in kinds) == is_missing


@pytest.mark.parametrize(
    "tool",
    [
        W,
        W["function"],
        {"type": "function", **W["function"]},
        {"type": "function", "function": None, **W["function"]},
        json.dumps(W),
        {"name": "w", "description": "d", "input_schema": SCHEMA},
        {"name": "w", "description": "d", "inputSchema": SCHEMA},
        {"name": "w", "description": "d", "input_schema": SCHEMA, "parameters": None},
        {"name": "w", "description": "d", "parameters": json.dumps(SCHEMA)},
    ],
)
def test_a_tool_is_offered_in_the_form_that_a_server_gets(tool):
    records = [
        {**chat("q", "a"), "tools": [tool]},
        {**chat("q", "a"), "tools": None, "functions": [tool]},
        {
            "messages": [
                {"role": "system", "content": "s", "tools": [tool]},
                *chat("q", "a")["messages"],
            ]
        },
    ]
    for record in records:
        dialogue = read_dialogue(record, Reading(HUNYUAN_A13B), [])
        assert dialogue.tools == [W]
    assert kinds_of({**records[0], "functions": [Z]}) >= {"tools"}


# results


def _two_calls(*results, ids=("1", "2")):
    calls = [
        {"id": one, "function": {"name": name, "arguments": X}}
        for one, name in zip(ids, ("w", "z"), strict=True)
    ]
    return _with_calls(*calls, results=results)


@pytest.mark.parametrize("field", [*RESULT_ID_FIELDS, "id"])
def test_results_are_put_in_the_order_of_their_calls_by_id(field):
    in_order = [_result("for w", **{field: "1"}), _result("for z", **{field: "2"})]
    expected = _outcome(_two_calls(*in_order))
    assert expected == 'u q | a w{"c": "x"}z{"c": "x"} | t for w | t for z | a a'
    assert kinds_of(_two_calls(*in_order)) == set()
    assert _outcome(_two_calls(*reversed(in_order))) == expected
    assert kinds_of(_two_calls(*reversed(in_order))) == {"result_order"}


@pytest.mark.parametrize("field", RESULT_NAME_FIELDS)
def test_results_are_put_in_the_order_of_their_calls_by_name(field):
    in_order = [_result("for w", **{field: "w"}), _result("for z", **{field: "z"})]
    no_ids = (None, None)
    assert _outcome(_two_calls(*reversed(in_order), ids=no_ids)) == _outcome(_two_calls(*in_order))


@pytest.mark.parametrize(
    ("results", "ids"),
    [
        ([{"tool_call_id": "1"}, {"tool_call_id": "3"}], ("1", "2")),
        ([{"tool_call_id": "1"}, {"tool_call_id": "1"}], ("1", "2")),
        ([{"tool_call_id": "1"}, {}], ("1", "2")),
        ([{"tool_call_id": "1"}, {"tool_call_id": "2"}], (None, None)),
        ([{"tool_call_id": "1"}, {"tool_call_id": "2"}], ("1", "1")),
        ([{"tool_call_id": "1", "name": "z"}, {"tool_call_id": "2"}], ("1", "2")),
        ([{"tool_call_id": "1", "toolCallId": "2"}, {"tool_call_id": "2"}], ("1", "2")),
        ([{"id": "1"}, {"id": "3"}], ("1", "2")),
        ([{"tool_call_id": "2"}], ("1", "2")),
        ([{"name": "z"}], ("1", "2")),
        ([{"name": "w", "tool_name": "z"}, {}], (None, None)),
        ([{"index": 1}, {"index": 0}], (None, None)),
        ([{"index": 1}], (None, None)),
        ([{"idx": 1}, {}], (None, None)),
        ([{"name": "w"}, {"name": "v"}], ("1", "2")),
        ([{"name": "w"}, {"name": "w"}], ("1", "2")),
    ],
)
def test_a_result_of_an_unknown_call_is_refused(results, ids):
    record = _two_calls(*(_result("r", **fields) for fields in results), ids=ids)
    assert _outcome(record) == {"tools"}


def test_what_says_nothing_of_the_call_of_a_result_is_noted():
    for fields in ([{"id": "m1"}, {"id": "m2"}], [{"index": 2}, {"index": 3}]):
        record = _two_calls(*(_result("r", **some) for some in fields))
        assert _outcome(record) == 'u q | a w{"c": "x"}z{"c": "x"} | t r | t r | a a'


@pytest.mark.parametrize(
    "field", ["result", "function_response", "observation_text", "tool_ref", "call_number"]
)
def test_a_field_of_a_result_that_is_not_read_is_refused(field):
    for content in ("", "r"):
        record = _with_calls({"name": "z"}, results=[_result(content, **{field: "other"})])
        assert _outcome(record) == {"unread_text"}


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ([{"a": 1}], '[{"a": 1}]'),
        ([{"a": 1, "id": "x"}, {"b": None}], '[{"a": 1, "id": "x"}, {"b": null}]'),
        ([{"type": "cafe", "name": "n"}], '[{"type": "cafe", "name": "n"}]'),
        ([1, [2]], "[1, [2]]"),
        ([{"type": "text", "text": "r"}], "r"),
        ([{"type": "text", "text": "r", "note": "n"}], {"unread_text"}),
        ("<tool_response>r</tool_response>", "r"),
        ("<tool_response>\nr\n</tool_response>\n", "r"),
        ("<tool_response>r", {"tools"}),
        ("a</tool_response>b", {"tools"}),
        ("<tool_response>a</tool_response><tool_response>b</tool_response>", {"tools"}),
    ],
)
def test_a_result_is_read_as_its_tool_gave_it_or_refused(content, outcome):
    record = _with_calls({"name": "z"}, results=[_result(content)])
    expected = outcome if isinstance(outcome, set) else f"u q | a z{{}} | t {outcome} | a a"
    assert _outcome(record) == expected


def test_a_result_of_an_earlier_turn_is_refused():
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "z"}]}
    later = {**call, "tool_calls": [{"id": "2", "name": "z"}]}
    turns = [_result("r", tool_call_id="1"), {"role": "user", "content": "q"}, later]
    assert _outcome(_with_message(call, *turns, _result("r", tool_call_id="1"))) == {"tools"}


# roles and turns


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("text", ["value", "content", "text"])
def test_every_speaker_of_sharegpt_is_read_with_its_text_under_any_name(speaker, text):
    turns = [{"from": "human", text: "q"}, {"from": "gpt", text: "a"}]
    turns.insert(0, {"from": "System", text: "s"})
    one = {"from": speaker.upper(), text: "x"}
    expected = {
        "system": "s x | u q | a a",
        "user": "s s | u x | a a",
        "assistant": "s s | u q | a x",
        "tool": {"tools"},
    }[SPEAKERS[speaker]]
    place = {"system": 0, "user": 1, "assistant": 2}.get(SPEAKERS[speaker])
    turns = (
        [*turns, one, turns[-1]] if place is None else [*turns[:place], one, *turns[place + 1 :]]
    )
    assert _outcome({"conversations": turns}) == expected


@pytest.mark.parametrize("role", [name for name, role in SPEAKERS.items() if role == "tool"])
def test_every_role_of_a_result_is_read(role):
    record = _with_calls({"name": "z"}, results=[{"role": role, "content": "r"}])
    assert _outcome(record) == "u q | a z{} | t r | a a"


@pytest.mark.parametrize(
    ("turn", "kinds"),
    [
        ({"role": "user", "content": "q", "value": "other"}, {"unread_text"}),
        ({"role": "user", "content": "q", "text": "other"}, {"unread_text"}),
        ({"role": "user", "content": "q", "images": ["x.png"]}, {"unread_text"}),
        ({"role": "user", "content": "q", "tool_calls": [{"name": "w"}]}, {"unread_text"}),
        ({"role": "user", "content": "q", "Content": "other"}, {"unread_text"}),
        ({"role": "user", "from": "gpt", "content": "q"}, {"role"}),
        ({"role": "narrator", "content": "q"}, {"role"}),
        ({"user": "q"}, {"role", "empty_user", "unread_text"}),
        ({"role": "user", "content": "q", "value": "q"}, set()),
        ({"role": "user", "content": "q", "audio": None, "images": []}, set()),
    ],
)
def test_a_text_of_a_turn_is_read_or_refused_by_name(turn, kinds):
    record = {"messages": [turn, {"role": "assistant", "content": "a"}]}
    assert _outcome(record) == (kinds or "u q | a a")


def test_blocks_of_anthropic_become_calls_and_results():
    use = {"type": "tool_use", "id": "1", "name": "w", "input": X}
    other = {"type": "tool_use", "id": "2", "name": "z", "input": {}}
    record = _with_message(
        {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, use, other]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "2", "content": "for z"},
                {"type": "tool_result", "tool_use_id": "1", "content": "for w"},
                {"type": "text", "text": "go on"},
            ],
        },
    )
    assert _outcome(record) == 'u q | a Wait.w{"c": "x"}z{} | t for w | t for z | u go on | a a'
    record["messages"][1]["content"][1] = {**use, "comment": "c"}
    problems: list[Problem] = []
    assert _outcome(record, problems) == {"unread_text"}
    assert "messages[1].content[1].comment" in [one.field for one in problems]


# forms


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "record",
    [
        chat("q", "a"),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
    ],
)
def test_a_system_text_beside_any_form_is_read(field, record):
    assert _outcome({**record, field: "s"}) == "s s | u q | a a"
    assert _outcome({**record, field: ""}) == "u q | a a"
    assert _outcome({**record, field: {"a": 1}}) == {"content_type"}
    other = {"system": "s", "system_prompt": "t"}
    assert _outcome({**record, **other}) == {"system"}


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "input": "", "output": "a"},
        {"query": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
    ],
)
@pytest.mark.parametrize(
    "history",
    [
        [["h", "b"]],
        [("h", "b")],
        '[["h", "b"]]',
        [{"role": "user", "content": "h"}, {"role": "assistant", "content": "b"}],
        [{"human": "h", "assistant": "b"}],
    ],
)
def test_a_history_beside_one_question_is_read(record, history):
    assert _outcome({**record, "history": history}) == "u h | a b | u q | a a"
    assert _outcome({**record, "history": "h"}) == {"form"}
    assert _outcome({**chat("q", "a"), "history": history}) == {"unread_text"}


NULLS = [
    {"messages": None},
    {"messages": []},
    {"conversations": None, "messages": None},
    {"conversation": ""},
    {"instruction": None, "input": None, "output": None},
    {"instruction": "", "input": "", "output": ""},
    {"prompt": None, "completion": None},
    {"question": None, "answer": "", "reasoning": None},
]


@pytest.mark.parametrize("nulls", NULLS)
@pytest.mark.parametrize(
    "record",
    [
        chat("q", "a"),
        {"conversations": chat("q", "a")["messages"]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"query": "q", "response": "a"},
    ],
)
def test_a_form_of_nulls_hides_no_other(nulls, record):
    assert _outcome({**nulls, **record}) == "u q | a a"
    assert _outcome({**record, **{key: nulls[key] for key in nulls if key not in record}}) == (
        "u q | a a"
    )


@pytest.mark.parametrize(
    "answer", ["b", [{"role": "assistant", "content": "b"}], {"role": "assistant", "content": "b"}]
)
@pytest.mark.parametrize("field", ["completion", "response", "answer", "output"])
def test_an_answer_beside_an_open_question_is_read(answer, field):
    asked = [{"role": "user", "content": "q"}]
    for question in ("messages", "conversations", "prompt"):
        assert _outcome({question: asked, field: answer}) == "u q | a b"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "think"])
def test_thoughts_beside_one_answer_are_its_own_and_beside_several_refused(field):
    assert _outcome({**chat("q", "a"), field: "t"}) == "u q | a (t) a"
    assert _outcome({**chat("q", "a", "q", "a"), field: "t"}) == {"unread_text"}


@pytest.mark.parametrize(
    "field",
    [
        "solution", "context", "documents", "images", "image_url", "audios", "videos", "chosen",
        "Attachments", "rejected", "rejected_response", "function_calls", "tool_calls",
        "completion", "instruction", "input", "text", "Complex_CoT", "chain-of-thought",
        "history", "problem", "conversations", "prompt", "answer", "Messages", "Tools", "choices",
        "target", "refusal", "expected_answer", "ground_truth", "sys_prompt", "image_path",
        "thinking_trajectories", "deepseek_reasoning", "long_cot", "reasoning_trace", "思考",
        "code", "schema", "sql_context", "table", "retrieved_docs", "instruction_2", "persona",
        "meta_instruction", "system_prompt2", "preamble", "系统", "available_tools", "imgs",
        "screenshot", "image_base64", "图片", "image_id", "chat_template_kwargs",
    ],
)  # fmt: skip
def test_a_text_beside_the_messages_is_refused_by_name(field):
    problems: list[Problem] = []
    assert _outcome({**chat("q", "a"), field: ["more"]}, problems) == {"unread_text"}
    assert [one.field for one in problems if one.kind == "unread_text"] == [field]
    for nothing in (None, "", [], {}):
        assert _outcome({**chat("q", "a"), field: nothing}) == "u q | a a"


@pytest.mark.parametrize(
    "field",
    [
        "should_train", "compute_loss", "calculate_loss", "train_on_turn", "is_trainable",
        "include_in_loss", "apply_loss", "learnable", "supervised", "assistant_mask", "no_train",
        "exclude", "ignore", "skip", "roles_to_train", "train_turns", "mask_turns", "masks",
        "turn_weights", "sample_weight", "loss_on", "train_last", "ignore_history", "maskHistory",
        "is_last_turn_only", "train_idx", "loss_score", "label", "kto_tag", "is_correct", "info",
        "thinking_blocks", "think_content", "thinkingContent", "reasoning_summary", "actions", "",
        " ", "thought_process", "deepseek_thinking_trajectory", "bystander", "知识",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [False, True, 0, 0.5, "x", [1], [{"x": "y"}], {"x": False}])
def test_a_field_of_no_known_name_is_refused_wherever_it_stands(field, value):
    beside = [
        ("", {**chat("q", "a"), field: value}),
        ("", {"instruction": "q", "output": "a", field: value}),
        ("", {"question": "q", "answer": "a", field: value}),
    ]
    for number in (0, 1):
        record = chat("q", "a")
        record["messages"][number][field] = value
        beside.append((f"messages[{number}].", record))
    for place, record in beside:
        problems: list[Problem] = []
        assert _outcome(record, problems) == {"unread_text"}
        shown = field if field.strip() else f'"{field}"'
        assert [one.field for one in problems if one.kind == "unread_text"] == [place + shown]


@pytest.mark.parametrize("field", THOUGHT_FIELDS)
def test_thoughts_of_a_message_that_is_no_answer_are_refused(field):
    for role in ("user", "system"):
        messages = [{"role": role, "content": "s", field: "t"}, *chat("q", "a")["messages"]]
        messages = messages if role == "system" else [messages[0], messages[2]]
        assert _outcome({"messages": messages}) == {"unread_text"}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"source": "web", "score": 3, "num_turns": 1, "Unnamed: 0": 4, "__index_level_0__": 5},
        {"conversation_id": "x", "createdAt": "2024", "data_source": "s", "answer_length": 9},
        {"meta": {"a": "b"}, "chat_template_kwargs": {"x": 1}, "response_url": "u", "来源": "网"},
    ],
)
def test_what_is_said_already_or_is_about_the_record_is_noted_by_name(fields):
    problems: list[Problem] = []
    assert _outcome({**chat("q", "a"), **fields}, problems) == "u q | a a"
    assert [one.field for one in problems if one.kind == "unused_field"] == [", ".join(fields)]


# loss

TWO = {"mode": "fast", **chat("q", "a", "r", "b")}
FIRST_OFF, LAST_OFF, BOTH = (
    "u q | a- a | u r | a b",
    "u q | a a | u r | a- b",
    "u q | a a | u r | a b",
)


def _first_answer(**fields):
    record = copy.deepcopy(TWO)
    record["messages"][1] |= fields
    return record


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"loss": False}, FIRST_OFF),
        ({"loss": 0}, FIRST_OFF),
        ({"train": False}, FIRST_OFF),
        ({"training": False}, FIRST_OFF),
        ({"trainable": 0.0}, FIRST_OFF),
        ({"loss_mask": 0}, FIRST_OFF),
        ({"output_with_loss": False}, FIRST_OFF),
        ({"masked": True}, FIRST_OFF),
        ({"ignore_loss": 1}, FIRST_OFF),
        ({"weight": 0}, FIRST_OFF),
        ({"loss_scale": 0.0}, FIRST_OFF),
        ({"train": "false"}, FIRST_OFF),
        ({"loss": "False"}, FIRST_OFF),
        ({"masked": "1"}, FIRST_OFF),
        ({"weight": "0.0"}, FIRST_OFF),
        ({"weight": "0.5", "train": "TRUE"}, BOTH),
        ({"train": "0.5"}, {"weight"}),
        ({"loss": False, "train": False, "weight": 0}, FIRST_OFF),
        ({"loss": True, "weight": 0}, FIRST_OFF),
        ({"loss": True}, BOTH),
        ({"masked": False}, BOTH),
        ({"loss": None, "loss_scale": None}, BOTH),
        ({"loss_scale": 0.5}, BOTH),
        ({"loss": 0.5}, {"weight"}),
        ({"loss": "no"}, {"weight"}),
        ({"loss_scale": [0.5, 1]}, {"weight"}),
        ({"loss_scale": "react"}, {"weight"}),
        ({"loss_mask": [0, 1]}, {"weight"}),
        ({"mask": True}, {"weight"}),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}, {"weight"}),
        ({"train": True, "loss": False}, {"weight"}),
        ({"masked": True, "train": True}, {"weight"}),
        ({"weight": 2, "loss_scale": 3}, {"weight"}),
        ({"weight": True}, {"weight"}),
    ],
)
def test_loss_fields_of_an_answer_are_read_or_refused(fields, outcome):
    assert _outcome(_first_answer(**fields)) == outcome


def test_a_share_of_the_loss_is_the_weight_of_the_answer():
    for field in ("weight", "loss_scale", "loss_weight"):
        [first, _] = _answers(_first_answer(**{field: 0.25}))
        assert first.weight == 0.25
        assert [one.weight for one in _answers({**TWO, field: 0.25})] == [0.25, 0.25]
        assert [one.weight for one in _answers({**TWO, field: [0.25, 2]})] == [0.25, 2]


def _answers(record):
    messages = read_dialogue(record, Reading(HUNYUAN_A13B), []).messages
    return [message for message in messages if message.role == "assistant"]


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"loss_mask": [0, 1]}, FIRST_OFF),
        ({"loss_mask": [True, False]}, LAST_OFF),
        ({"loss_mask": [0, 0, 0, 1]}, FIRST_OFF),
        ({"loss_masks": [0, 1]}, FIRST_OFF),
        ({"weights": [0, 1.0]}, FIRST_OFF),
        ({"train": [False, True]}, FIRST_OFF),
        ({"masked": [True, False]}, FIRST_OFF),
        ({"loss_mask": "[0, 1]"}, FIRST_OFF),
        ({"mask_history": "true"}, FIRST_OFF),
        ({"mask_history": True}, FIRST_OFF),
        ({"train_on_last_turn_only": 1}, FIRST_OFF),
        ({"last_turn_only": True}, FIRST_OFF),
        ({"loss_scale": "last_round"}, FIRST_OFF),
        ({"mask_history": False}, BOTH),
        ({"mask": "User"}, BOTH),
        ({"loss": True, "train": True}, BOTH),
        ({"loss": False}, {"no_answer"}),
        ({"weight": 0.0}, {"no_answer"}),
        ({"masked": True}, {"no_answer"}),
        ({"loss_mask": [1, 0, 0, 1]}, {"prompt_loss"}),
        ({"loss_mask": [0, 1, 1]}, {"weight"}),
        ({"loss_mask": [0] * 40 + [1] * 9}, {"weight"}),
        ({"loss_mask": ["no", "yes"]}, {"weight"}),
        ({"loss": 0.7}, {"weight"}),
        ({"mask": "Assistant"}, {"weight"}),
        ({"mask_history": "some"}, {"weight"}),
    ],
)
def test_loss_fields_of_a_record_are_read_or_refused(fields, outcome):
    assert _outcome({**TWO, **fields}) == outcome


@pytest.mark.parametrize("field", sorted(RECORD_LOSS_FIELDS))
def test_no_loss_field_is_passed_over(field):
    """Some value of each changes what is trained, or is refused by name."""
    for value in (False, True, [0, 1], "other"):
        problems: list[Problem] = []
        outcome = _outcome({**TWO, field: value}, problems)
        assert outcome != BOTH or value in (False, True)
    assert problems[-1].field == field


def test_loss_on_a_question_is_refused_and_its_absence_is_not():
    for field, value in (("train", True), ("loss", 1), ("weight", 0.5), ("masked", False)):
        record = copy.deepcopy(TWO)
        record["messages"][0][field] = value
        assert _outcome(record) == {"prompt_loss"}
    for field, value in (("train", False), ("loss", 0), ("weight", 0), ("masked", True)):
        record = copy.deepcopy(TWO)
        record["messages"][0][field] = value
        assert _outcome(record) == BOTH


# every key of every form

_ANSWER = {"role": "assistant", "content": "Wait.", "weight": 0.5, "train": True, "loss": True}
_CALL = {"id": "1", "type": "function", "function": {"name": "w", "arguments": {"c": "x"}}}
_RESULT = {"role": "tool", "tool_call_id": "1", "name": "w", "content": "sun"}
_PAIR = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
FORMS = {
    "chat": {
        "mode": "slow",
        "now": NOW,
        "tools": [W, Z],
        "system": "S",
        "messages": [
            {"role": "user", "content": "Q1"},
            {**_ANSWER, "reasoning_content": "T1", "tool_calls": [_CALL]},
            _RESULT,
            {"role": "assistant", "reasoning_content": "T2", "content": "A1"},
        ],
    },
    "legacy calls": {
        "functions": [W["function"]],
        "messages": [
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "", "function_call": {"name": "w", "arguments": X}},
            {"role": "function", "name": "w", "content": "sun"},
            {"role": "assistant", "content": "A1"},
        ],
    },
    "ShareGPT": {
        "system": "S",
        "tools": [W],
        "conversations": [
            {"from": "human", "value": "Q1"},
            {"from": "function_call", "value": {"name": "w", "parameters": {"c": "x"}}},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "A1", "train": True},
        ],
    },
    "ms-swift": {
        "tools": [W],
        "loss_mask": [0, 1],
        "messages": [
            {"role": "user", "content": "Q1"},
            {"role": "tool_call", "name": "w", "arguments": {"c": "x"}},
            {"role": "tool_response", "content": "sun"},
            {"role": "assistant", "content": "A1", "loss": True},
        ],
    },
    "Anthropic": {
        "system": "S",
        "tools": [{"name": "w", "input_schema": SCHEMA}],
        "messages": [
            {"role": "user", "content": "Q1"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "T1"},
                    {"type": "text", "text": "A1"},
                    {"type": "tool_use", "id": "1", "name": "w", "input": {"c": "x"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "sun"}],
            },
            {"role": "assistant", "content": "A2"},
        ],
    },
    "Alpaca": {
        "system": "S",
        "instruction": "Q1",
        "input": "more",
        "output": "A1",
        "history": [["Q0", "A0"]],
    },
    "query": {
        "system": "S",
        "query": "Q1",
        "response": "A1",
        "history": [["Q0", "A0"]],
        "think": "T",
    },
    "prompt": {"prompt": _PAIR[:1], "completion": _PAIR[1:], "system_prompt": "S"},
    "open": {"messages": _PAIR[:1], "answer": "A1", "reasoning": "T1"},
    "pairs": {"system": "S", "conversation": [{"human": "Q1", "assistant": "A1"}], "weight": 0.5},
}
# Names of things, which no reader of the dialogue is shown.
_IDENTITIES = ("id", "index")


def _walk(value, path=()):
    """The path of every key in a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _walk(inner, (*path, key))


def _walk_objects(value, path=()):
    """The path of every object in a record."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from _walk_objects(inner, (*path, key))


def _set(record, path, value):
    changed = copy.deepcopy(record)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def _taught(record) -> tuple[object, list[Problem]]:
    """Every segment with its weight, and what is said about the record."""
    problems: list[Problem] = []
    dialogue = read_dialogue(record, Reading(HUNYUAN_A13B), problems)
    if dialogue is None or any(
        DECIDE(one) == "error" for one in problems if one.kind != "untagged"
    ):
        return None, problems
    rendering = HUNYUAN_A13B.render(dialogue)
    segments = [
        *rendering.history,
        *(one for target in rendering.targets for one in target.segments),
    ]
    return [(one.text, one.weight) for one in segments], problems


def _get(record, path):
    for key in path:
        record = record[key]
    return record


VALUES = ["other", "", None, 7, 0, -1.5, True, False, [], ["other"], [0, 1], [None], {}, [[]]]
VALUES += [{"other": 1}, {"type": "text", "text": "other"}, [{"other": "x"}], '{"other": 1}']


@pytest.mark.parametrize("form", FORMS)
def test_every_changed_value_changes_tokens_or_is_named(form):
    record = FORMS[form]
    before, known = _taught(record)
    assert before is not None, known
    passed_over = []
    for path in _walk(record):
        for value in VALUES:
            after, problems = _taught(_set(record, path, value))
            is_said = after != before or any(one not in known for one in problems)
            was = _get(record, path)
            if not (is_said or value == was or _is_absence(value, was, path)):
                passed_over.append((path, value))
    assert [one for one in passed_over if one[0][-1] not in _IDENTITIES] == []


def _is_absence(value, before, path):
    """Whether a value is how a table fills a field that a record lacks: so it is as if absent."""
    nothing = (None, "", [], {})
    return value in nothing and (before in nothing or path[-1] not in ("content", "value"))


OBJECTS = [(form, path) for form, record in FORMS.items() for path in _walk_objects(record)]


@pytest.mark.parametrize(("form", "path"), OBJECTS)
def test_a_key_that_is_not_known_is_named_wherever_it_stands(form, path):
    before, _ = _taught(FORMS[form])
    after, problems = _taught(_set(FORMS[form], (*path, "remark"), "text"))
    is_named = any("remark" in one.field for one in problems)
    assert is_named or after not in (before, None), "a key of a tool is a part of its prompt"
