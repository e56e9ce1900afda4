"""What the calls of an answer are worth beside the calls that the data has to its prompt.

Three measures, from the strictest on: exact (the same JSON, in the same order), by type and value
(as the Berkeley Function Calling Leaderboard compares: `bfcl_eval/eval_checker/ast_eval` in
ShishirPatil/gorilla, read in November 2026), and by name. The second takes calls in any order,
texts without regard to case, blanks and `,./-_*^`, an integer where a number is asked for, and an
argument that is left out where its schema has the same default. Nothing is called.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hunyuan_train.families.grammar.dialogue import ToolCall
from hunyuan_train.families.grammar.interface import Grammar, ParsedOutput

Json = Any

KINDS = ("none", "one", "many")  # calls that the data has to a prompt
_PASSED_OVER = re.compile(r"[ ,./\-_*^]")
_MAX_TOOLS = 50  # that have numbers of their own


@dataclass(frozen=True, slots=True)
class CallScore:
    """The calls of one answer to a prompt with tools."""

    num_expected: int
    num_given: int
    is_parsed: bool  # False: marks of calls that no server reads as calls
    is_named: bool  # the same functions, however often and in whatever order
    is_right: bool  # the same by type and value
    is_exact: bool
    by_tool: dict[str, bool] = field(default_factory=dict)  # expected tools: all their calls right

    @property
    def kind(self) -> str:
        """How many calls were due."""
        return KINDS[min(self.num_expected, 2)]


def score_calls(
    wanted: ParsedOutput, given: ParsedOutput, output: str, grammar: Grammar, tools: Sequence[Json]
) -> CallScore:
    """Compare the calls of an answer with those of the data.

    Args:
        wanted: the data's answer.
        given: the model's, both taken apart.
        output: the model's, as it was generated.
        grammar: in which it is written.
        tools: on offer.
    """
    is_parsed = bool(given.tool_calls) or grammar.tools.call_marks[0] not in output
    names = [Counter(call.name for call in parsed.tool_calls) for parsed in (wanted, given)]
    rest, by_tool = list(given.tool_calls), dict.fromkeys(names[0], True)
    for call in wanted.tool_calls:
        found = next((one for one in rest if are_alike(call, one, tools)), None)
        if found is None:
            by_tool[call.name] = False
        else:
            rest.remove(found)
    return CallScore(
        num_expected=len(wanted.tool_calls),
        num_given=len(given.tool_calls),
        is_parsed=is_parsed,
        is_named=is_parsed and names[0] == names[1],
        is_right=is_parsed and all(by_tool.values()) and not rest,
        is_exact=is_parsed and write_calls(wanted.tool_calls) == write_calls(given.tool_calls),
        by_tool=by_tool,
    )


def write_calls(calls: Iterable[ToolCall]) -> tuple[str, ...]:
    """Calls in a form in which equal ones are equal."""
    return tuple(f"{call.name} {_canonical(call.arguments)}" for call in calls)


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments


def are_alike(wanted: ToolCall, given: ToolCall, tools: Sequence[Json]) -> bool:
    """Whether a call is another one, by type and value."""
    if wanted.name != given.name:
        return False
    theirs, ours = _read(wanted.arguments), _read(given.arguments)
    if theirs is None or ours is None:
        return wanted.arguments == given.arguments
    return _are_alike(theirs, ours, _find_schema(wanted.name, tools))


def _read(arguments: str) -> dict[str, Json] | None:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _find_schema(name: str, tools: Sequence[Json]) -> Json:
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("name") == name:
            return function.get("parameters")
    return None


def _are_alike(wanted: Json, given: Json, schema: Json) -> bool:
    """Whether two values are the same; a schema says what is left to choice."""
    if isinstance(wanted, bool) or isinstance(given, bool) or wanted is None or given is None:
        return wanted is given
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        is_whole = isinstance(given, int) or _type_of(schema) not in ("integer", "int")
        return is_whole and wanted == given
    if isinstance(wanted, str) and isinstance(given, str):
        return _standardise(wanted) == _standardise(given)
    if isinstance(wanted, list) and isinstance(given, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return len(wanted) == len(given) and all(
            _are_alike(*pair, items) for pair in zip(wanted, given, strict=True)
        )
    if isinstance(wanted, dict) and isinstance(given, dict):
        return _are_same_fields(wanted, given, schema)
    return False


def _are_same_fields(wanted: dict[str, Json], given: dict[str, Json], schema: Json) -> bool:
    fields = schema.get("properties") if isinstance(schema, dict) else None
    fields = fields if isinstance(fields, dict) else {}
    defaults = {
        name: one["default"]
        for name, one in fields.items()
        if isinstance(one, dict) and "default" in one
    }
    for name in {**wanted, **given}:
        missing = name not in wanted or name not in given
        if missing and name not in defaults:
            return False
        theirs, ours = wanted.get(name, defaults.get(name)), given.get(name, defaults.get(name))
        if not _are_alike(theirs, ours, fields.get(name)):
            return False
    return True


def _type_of(schema: Json) -> Json:
    return schema.get("type") if isinstance(schema, dict) else None


def _standardise(text: str) -> str:
    """A text without what BFCL passes over, so that `April 1, 2024` is `april 1 2024`."""
    return _PASSED_OVER.sub("", text).lower().replace("'", '"')


def summarize_calls(scores: Sequence[CallScore]) -> dict[str, float | int]:
    """Means over the answers to prompts with tools; nothing where there are none."""
    if not scores:
        return {}
    numbers: dict[str, float | int] = {
        "eval_calls": len(scores),
        "eval_call_accuracy": _mean(one.is_right for one in scores),
        "eval_call_exact": _mean(one.is_exact for one in scores),
        "eval_call_name": _mean(one.is_named for one in scores),
        "eval_call_parse_errors": _mean(not one.is_parsed for one in scores),
    }
    for kind in KINDS:
        if group := [one for one in scores if one.kind == kind]:
            numbers[f"eval_call_accuracy_{kind}"] = _mean(one.is_right for one in group)
    if undue := [one for one in scores if one.kind == "none"]:
        numbers["eval_call_undue"] = _mean(one.num_given > 0 for one in undue)
    if due := [one for one in scores if one.kind != "none"]:
        numbers["eval_call_missed"] = _mean(not one.num_given for one in due)
    by_tool = list_by_tool([one.by_tool for one in scores])
    for name in sorted(by_tool, key=lambda name: -len(by_tool[name]))[:_MAX_TOOLS]:
        numbers[f"eval_call_accuracy/{name}"] = _mean(by_tool[name])
    return numbers


def list_by_tool(scores: Iterable[Mapping[str, bool]]) -> dict[str, list[bool]]:
    """Of each tool, whether its calls were right in each answer that was to call it."""
    found: dict[str, list[bool]] = {}
    for by_tool in scores:
        for name, is_right in by_tool.items():
            found.setdefault(name, []).append(is_right)
    return found


def _mean(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
