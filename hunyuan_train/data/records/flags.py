"""Fields that say whether a model is to think, under the names that servers and data sets use.

In some data sets they share a name with fields that hold thoughts (`reasoning: "off"`). A flag is a
mode, or refused by name; it is never taught.
"""

import re
from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.forms import THOUGHT_FIELDS
from hunyuan_train.families.grammar.interface import Grammar

TEMPLATE_FIELDS = ("chat_template_kwargs", "kwargs")  # what a client hands the template beside
_FLAG_FIELDS = (
    "enable_thinking",
    "thinking_enabled",
    "enable_reasoning",
    "thinking_mode",
    "reasoning_mode",
)
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_NEGATED_FIELDS = ("no_think", "nothink", "disable_thinking")
_FIELDS = (*THOUGHT_FIELDS, *_FLAG_FIELDS, *_NEGATED_FIELDS)
_PLACES = frozenset((*_FIELDS, *TEMPLATE_FIELDS))
_MODES = {
    **dict.fromkeys(("on", "true", "enabled", "enable", "detailed thinking on"), "slow"),
    **dict.fromkeys(("off", "false", "disabled", "disable", "detailed thinking off"), "fast"),
}
# Words of a setting or of nothing, which are no thoughts and say no mode.
_SETTINGS = {"auto", "adaptive", "default", "none", "null", "yes", "no", "fast", "slow"} | {
    *("minimal", "low", "medium", "high", "xhigh", "max", "0", "1"),
    *("", "n/a", "na", "nan", "nil", "empty", "no thinking", "no reasoning", "no thoughts"),
}


def name_flag(value: object) -> str:
    """The mode that a flag asks for, "unknown" for one that says none, "" for what is no flag."""
    if isinstance(value, dict):  # {"type": "enabled", "budget_tokens": 1024}
        value = value.get("type")
    if isinstance(value, bool):
        return "slow" if value else "fast"
    if not isinstance(value, str) or not value.strip():
        return ""
    word = _EDGES.sub("", value.lower())  # "" for a dash
    return _MODES.get(word) or ("unknown" if word in _SETTINGS else "")


def refuse_flag(field: str, value: object) -> Problem:
    """A flag that states no mode of its record."""
    fix = "state the mode of the record: fast, slow or plain"
    return Problem("mode", field, f"{value!r} is a setting and no thoughts", fix)


def take_options(
    record: dict[str, Any],
    grammar: Grammar,
    effort: str,
    problems: list[Problem],
    *,
    as_written: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record without what the model's own template takes beside messages, and that.

    Args:
        record: decoded.
        grammar: of the model; most have no such fields.
        effort: how much to think, for a record that does not say.
        problems: an effort that the template does not know is added.
        as_written: also options that training has no use for, and those for the template.
    """
    if not grammar.options:
        return record, {}
    rest = dict(record)
    options: dict[str, Any] = {}
    names = grammar.options if as_written else grammar.options[:1]
    for outer in TEMPLATE_FIELDS:
        if isinstance(rest.get(outer), dict):
            inner = dict(rest[outer])
            given = {name: inner.pop(name, None) for name in names}
            options |= {name: value for name, value in given.items() if value is not None}
            rest[outer] = inner or None
    options |= {name: rest.pop(name) for name in names if rest.get(name) is not None}
    field = names[0]
    if rest.get("effort") in grammar.efforts:
        options.setdefault(field, rest.pop("effort"))
    if effort:
        options.setdefault(field, effort)
    if field in options and options[field] not in grammar.efforts:
        reason, fix = f"{field} is {options[field]!r}", f"give one of {', '.join(grammar.efforts)}"
        problems.append(Problem("mode", field, reason, fix))
        del options[field]
    return rest, options


def take_flags(
    record: dict[str, Any], problems: list[Problem], *, with_template_fields: bool
) -> tuple[dict[str, Any], str]:
    """The record without its flags, and the mode that they and `mode` state; "" for none.

    Args:
        with_template_fields: also flags among what a client hands the model's own template.
    """
    stated = {"mode": record["mode"]} if record.get("mode") in ("fast", "slow", "plain") else {}
    if record.keys().isdisjoint(_PLACES):  # as in most records
        return record, stated.get("mode", "")
    rest = dict(record)
    for field in _FIELDS:
        _take_flag(rest, field, field, stated, problems)
    for outer in TEMPLATE_FIELDS if with_template_fields else ():
        if isinstance(rest.get(outer), dict):
            inner = dict(rest[outer])
            for field in (*_FLAG_FIELDS, "thinking"):
                _take_flag(inner, field, f"{outer}.{field}", stated, problems)
            rest[outer] = inner or None
    if len(set(stated.values())) > 1:
        said = " and ".join(f"{field} says {mode}" for field, mode in stated.items())
        problems.append(Problem("mode", next(iter(stated)), said, "keep one of them"))
    return rest, next(iter(stated.values()), "")


def _take_flag(
    fields: dict[str, Any],
    name: str,
    place: str,
    stated: dict[str, str],
    problems: list[Problem],
) -> None:
    mode = name_flag(fields.get(name))
    if not mode:
        return
    value = fields.pop(name)
    if mode == "unknown":
        problems.append(refuse_flag(place, value))
        return
    is_negated = name in _NEGATED_FIELDS
    stated[place] = {"fast": "slow", "slow": "fast"}[mode] if is_negated else mode
