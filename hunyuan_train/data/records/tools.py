"""The functions that a dialogue offers, and whether its calls and their results fit them."""

from collections import Counter
from itertools import takewhile
from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.data.records.nulls import SCHEMA_FIELDS, allows_null
from hunyuan_train.data.records.texts import name_type
from hunyuan_train.data.records.turns import NOTHING
from hunyuan_train.data.records.written_calls import find_written_call
from hunyuan_train.families.grammar.dialogue import Dialogue, Message, ToolCall

Record = dict[str, Any]

TOOL_FIELDS = ("tools", "functions")  # the second is OpenAI's older name
RESULT_ID_FIELDS = (
    *("tool_call_id", "tool_use_id", "call_id", "function_call_id"),
    *("toolCallId", "toolUseId", "callId", "functionCallId"),
)
RESULT_NAME_FIELDS = ("name", "tool_name", "function_name", "toolName", "functionName")

_CALL_ID_FIELDS = ("id", "call_id")
_MAX_REFS = 8  # that lead from one schema to the next


def lift_tools(record: Record, problems: list[Problem]) -> Record:
    """The record with its tools under `tools`, whether they stand there or in a system message."""
    places = [(field, record[field]) for field in TOOL_FIELDS if record.get(field) not in NOTHING]
    for index, message in enumerate(record["messages"]):
        if isinstance(message, dict) and message.get("role") == "system":
            places += [
                (f"messages[{index}].{field}", message[field])
                for field in TOOL_FIELDS
                if message.get(field) not in NOTHING
            ]
    if not places or [field for field, _ in places] == ["tools"]:
        return record
    first, tools = places[0]
    for field, others in places[1:]:
        if _parse_list(others) != _parse_list(tools):
            reason = f"tools here and in {first}, which differ"
            problems.append(Problem("tools", field, reason, "keep one of the lists"))
    if first != "tools":
        problems.append(Problem("converted", first, "the functions on offer", "read as tools"))
    return {**{key: record[key] for key in record if key not in TOOL_FIELDS}, "tools": tools}


def read_tools(tools: object, *, as_written: bool, problems: list[Problem]) -> list[Record]:
    """The tools in the form in which clients send them to a server."""
    listed = _parse_list(tools)
    if listed is None:
        problems.append(Problem("tools", "tools", "not a list of functions", "give OpenAI's form"))
        return []
    if as_written:
        return listed
    return [_read_tool(tool, f"tools[{index}]", problems) for index, tool in enumerate(listed)]


def _parse_list(tools: object) -> list[Record] | None:
    if isinstance(tools, str):
        tools = parse_json(tools)
    if isinstance(tools, dict) and ("name" in tools or "function" in tools):
        tools = [tools]
    if not isinstance(tools, list):
        return None
    parsed = [parse_json(tool) if isinstance(tool, str) else tool for tool in tools]
    listed = [tool for tool in parsed if isinstance(tool, dict)]
    return listed if len(listed) == len(parsed) else None


def _read_tool(tool: Record, field: str, problems: list[Problem]) -> Record:
    if "function" in tool and tool["function"] not in NOTHING:
        function, wrapped = tool["function"], tool
    else:
        is_typed = tool.get("type") == "function"  # as in OpenAI's Responses, beside the name
        left_out = ("function", "type") if is_typed or "function" in tool else ()
        function = {key: tool[key] for key in tool if key not in left_out}
        wrapped = {"type": "function", "function": function}
    if not find_name(wrapped):
        problems.append(Problem("tools", field, "a tool without a function name", "give one"))
        return wrapped
    return {**wrapped, "function": _name_schema(function, field, problems)}


def _name_schema(function: Record, field: str, problems: list[Problem]) -> Record:
    """The function with its schema as an object under `parameters`."""
    others = SCHEMA_FIELDS[1:]
    schema_field = next((one for one in others if function.get(one) not in NOTHING), None)
    if schema_field and function.get("parameters") in NOTHING:
        reason, fix = f"{schema_field} of a function", "read as parameters"
        problems.append(Problem("converted", f"{field}.{schema_field}", reason, fix))
        renamed = {schema_field: "parameters"}
        left = (key for key in function if key != "parameters")
        function = {renamed.get(key, key): function[key] for key in left}
    schema = function.get("parameters")
    if isinstance(schema, dict) and schema.keys() == {"json"}:  # as Bedrock wraps it
        schema = schema["json"]
    if isinstance(schema, str) and isinstance(parsed := parse_json(schema), dict):
        reason, fix = "a schema written as text", "read as the object that it is"
        problems.append(Problem("converted", f"{field}.parameters", reason, fix))
        schema = parsed
    if schema not in NOTHING:
        _check_schema(schema, f"{field}.parameters", problems)
    return {**function, "parameters": schema} if "parameters" in function else function


def _check_schema(schema: object, field: str, problems: list[Problem]) -> None:
    """Say of a tool's schema what keeps its calls from being checked."""
    from hunyuan_train.data.records.argument_schemas import find_schema_fault, find_unknown_type

    fix = "make it a JSON schema: calls of it are not checked"
    if not isinstance(schema, dict):
        reason = f"{name_type(schema)} in place of a schema"
        problems.append(Problem("tool_schema", field, reason, fix))
    elif fault := find_schema_fault(schema):
        problems.append(Problem("tool_schema", field, fault, fix))
    elif unknown := find_unknown_type(schema):
        fix = "name a type of JSON schema: such values are not checked"
        problems.append(Problem("tool_schema", field, unknown, fix))


def find_name(tool: Record) -> str:
    """The name of a tool's function; "" where it has none."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def check_calls(message: Message, dialogue: Dialogue, place: str, problems: list[Problem]) -> None:
    """Calls name listed tools, and their arguments fit the tools' schemas."""
    if not message.tool_calls:
        names = {find_name(tool) for tool in dialogue.tools}
        if name := find_written_call(message.content, names):
            reason = f"a call of {name!r}, written as the text of an answer"
            fix = "give it as tool_calls; foreign_markers=note teaches it as text"
            problems.append(Problem("foreign_markers", f"{place}.content", reason, fix))
        return
    field = f"{place}.tool_calls"
    if not dialogue.tools:
        reason = "calls in a record without tools, which the template leaves out"
        problems.append(Problem("tools", field, reason, "add the list of tools"))
        return
    tools = {find_name(tool): tool for tool in dialogue.tools}
    for index, call in enumerate(message.tool_calls):
        if call.name and call.name not in tools:
            reason = f"calls {call.name!r}, which is not among the tools"
            problems.append(Problem("tools", field, reason, "add it to tools, or fix the name"))
        elif call.name and call.arguments:
            function = tools[call.name]["function"]
            if isinstance(schema := function.get("parameters"), dict):
                if "required" in function:  # beside the schema
                    schema = {"required": function["required"], **schema}
                _check_arguments(call, schema, f"{field}[{index}].arguments", problems)


def _check_arguments(call: ToolCall, schema: Record, field: str, problems: list[Problem]) -> None:
    arguments = parse_json(call.arguments) or {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    needed = _list_required(schema, schema, _MAX_REFS)
    needed += [name for name, one in properties.items() if _is_marked_required(one)]
    for name in dict.fromkeys(needed):
        is_null = name in arguments and arguments[name] is None
        if name not in arguments or (is_null and not allows_null(properties.get(name))):
            reason = f"calls {call.name!r} without its required argument {name!r}"
            fix = "add it, or take it out of the schema's `required`"
            problems.append(Problem("missing_argument", f"{field}.{name}", reason, fix))
    for name in arguments:
        if properties and name not in properties and not schema.get("additionalProperties"):
            reason = f"an argument that the schema of {call.name!r} does not list"
            problems.append(Problem("odd_argument", f"{field}.{name}", reason, "check its name"))
    given = {name: value for name, value in arguments.items() if value is not None}
    from hunyuan_train.data.records.argument_schemas import find_misfits

    for misfit in find_misfits(given, schema):
        reason = f"an argument that does not fit the schema of {call.name!r}: {misfit.reason}"
        place = f"{field}.{misfit.place}"
        problems.append(Problem("odd_argument", place, reason, "check its value"))


def _list_required(schema: object, root: Record, num_refs: int) -> list[str]:
    """The fields that a schema requires, by itself or by the schemas that it refers to."""
    if not isinstance(schema, dict) or not num_refs:
        return []
    required = schema.get("required")
    names = [required] if isinstance(required, str) else required
    needed = [str(name) for name in names] if isinstance(names, list) else []
    target: Any = root
    reference = str(schema.get("$ref", ""))
    for step in reference.split("/")[1:] if reference.startswith("#/") else ():
        target = target.get(step) if isinstance(target, dict) else None
    parts = [] if target is root else [target]
    parts += schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    for part in parts:
        needed += _list_required(part, root, num_refs - 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list) and choices:
            of_each = [set(_list_required(choice, root, num_refs - 1)) for choice in choices]
            needed += sorted(set.intersection(*of_each))
    return needed


def _is_marked_required(schema: object) -> bool:
    return isinstance(schema, dict) and schema.get("required") is True


def match_results(messages: list[Message], index: int, problems: list[Problem]) -> None:
    """Put the results behind a message in the order of its calls: the template writes no ids."""
    calls = messages[index].tool_calls or []
    results = list(takewhile(lambda message: message.role == "tool", messages[index + 1 :]))
    is_last = index + 1 == len(messages)  # results are still to come
    if not calls or is_last:
        return
    if len(results) != len(calls):
        field = f"messages[{index + 1}]"
        reason = f"{len(results)} result(s) of {len(calls)} call(s)"
        problems.append(Problem("tool_results", field, reason, "give one result for each call"))
    if not results:
        return
    found: list[Problem] = []
    places = _match_ids(calls, results, index + 1, found)
    if places is None and not found:
        places = _match_names(calls, results, index + 1, found)
        _refuse_numbers(calls, results, index + 1, found)
    if places is not None and sorted(places) != list(range(len(places))):
        reason = f"no result of the call {calls[0].name!r}, and one of a later call"
        found.append(Problem("tools", f"messages[{index + 1}]", reason, "add the result"))
    problems += found
    if places is None or found or places == sorted(places):
        return
    reason = "results in another order than their calls"
    problems.append(Problem("result_order", f"messages[{index + 1}]", reason, "reordered", True))
    in_order = sorted(zip(places, results, strict=True), key=lambda pair: pair[0])
    messages[index + 1 : index + 1 + len(results)] = [result for _, result in in_order]


def _match_ids(
    calls: list[ToolCall], results: list[Message], start: int, problems: list[Problem]
) -> list[int] | None:
    """The call that each result answers, by id; None where no result has one."""
    ids = {
        str(dict(call.extra)[field]): number
        for number, call in enumerate(calls)
        for field in _CALL_ID_FIELDS
        if dict(call.extra).get(field) not in NOTHING
    }
    answered = [_find_stated(result, RESULT_ID_FIELDS) for result in results]
    own = [_find_stated(result, ("id",)) for result in results]
    if any(one in ids for one in own) and not any(answered):  # of a call, and not of the message
        answered = own
    if not any(answered):
        return None
    known = ", ".join(ids) or "none has an id"
    places = []
    for number, one in enumerate(answered):
        field = f"messages[{start + number}]"
        place = ids.get(one) if one is not None else None
        if one is None:
            reason = "a result without an id beside results with one"
            problems.append(Problem("tools", field, reason, "give the id of its call"))
        elif place is None:
            reason = f"answers the call {one!r}, which is not among those before it: {known}"
            problems.append(Problem("tools", f"{field}.tool_call_id", reason, "fix the id"))
        elif place in places:
            reason = f"answers the call {one!r}, which has its result"
            problems.append(Problem("tools", f"{field}.tool_call_id", reason, "fix the id"))
        else:
            places.append(place)
            name = _find_result_name(results[number])
            if name not in (None, calls[place].name):
                reason = f"is named {name!r} and answers a call of {calls[place].name!r}"
                problems.append(Problem("tools", f"{field}.name", reason, "fix name or id"))
    repeated = [one for one, times in Counter(map(_first_id, calls)).items() if one and times > 1]
    if repeated:
        reason = f"two calls with the id {repeated[0]!r}"
        problems.append(Problem("tools", f"messages[{start - 1}].tool_calls", reason, "fix the id"))
    return places


def _match_names(
    calls: list[ToolCall], results: list[Message], start: int, problems: list[Problem]
) -> list[int] | None:
    """The call that each result answers, by the function's name; None where one lacks a name."""
    free: dict[str, list[int]] = {}
    for number, call in enumerate(calls):
        free.setdefault(call.name, []).append(number)
    names = [_find_result_name(result) for result in results]
    for number, name in enumerate(names):
        if name is not None and name not in free:
            reason = f"is named {name!r}, and no call before it is: {', '.join(free)}"
            field = f"messages[{start + number}].name"
            problems.append(Problem("tools", field, reason, "fix the name"))
    if problems or any(name is None for name in names):
        return None
    places = []
    for number, name in enumerate(names):
        if not free[name or ""]:
            reason = f"more results of {name!r} than calls"
            problems.append(Problem("tools", f"messages[{start + number}].name", reason, "fix it"))
            return None
        places.append(free[name or ""].pop(0))
    return places


def _refuse_numbers(
    calls: list[ToolCall], results: list[Message], start: int, problems: list[Problem]
) -> None:
    """A number on results that have no id may be that of their calls, in another order."""
    for field in ("index", "idx"):
        numbers = [(result.extra or {}).get(field) for result in results]
        if len(calls) < 2 or all(one is None for one in numbers):
            continue
        counts = [one for one in numbers if isinstance(one, int)]
        if len(counts) < len(calls) or counts != sorted(set(counts)):
            reason = f"{field} is not read, and may name the call that a result answers"
            fix = "give each result the tool_call_id of its call"
            problems.append(Problem("tools", f"messages[{start}].{field}", reason, fix))


def _find_stated(result: Message, fields: tuple[str, ...]) -> str | None:
    """What a result says in any of some fields; what they say differently is no one's id or name"""
    stated = {
        str(one): None for key in fields if (one := (result.extra or {}).get(key)) not in NOTHING
    }
    return " and ".join(stated) or None


def _find_result_name(result: Message) -> str | None:
    return _find_stated(result, RESULT_NAME_FIELDS)


def _first_id(call: ToolCall) -> str:
    fields = dict(call.extra)
    return next((str(fields[key]) for key in _CALL_ID_FIELDS if fields.get(key) not in NOTHING), "")
