"""One message of a record: role, content, thoughts, tool calls, loss fields."""

import re
from typing import Any
from unicodedata import is_normalized

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.data.records.forms import THOUGHT_FIELDS, name_type
from hunyuan_train.families.grammar.dialogue import ROLES, Message, ToolCall, dump_json
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import to_nfc

# tiktoken's regex gives up at a run of about a million; no honest text comes near this.
MAX_BLANK_RUN = 200_000

_BLANK_RUN = re.compile(rf"\s{{{MAX_BLANK_RUN},}}")
_NOTHING: tuple[object, ...] = (None, "", [])  # how a table fills a field that a message lacks
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # in a record that is refused: not empty as well
_MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")
_RENAMED_ROLES = {"developer": "system", "function": "tool"}
_ROLE_HINTS = dict.fromkeys(("gpt", "bot", "model", "ai", "chatgpt"), "assistant") | {
    "human": "user",
    "observation": "tool",
}
_KEPT_FIELDS = {"name", "tool_call_id", "id"}  # of the OpenAI form; the template writes none
_FIELDS = {"role", "content", *_KEPT_FIELDS}
_CALL_FIELDS = {"type", "function", "name", "arguments"}
_ANSWER_FIELDS = {*_FIELDS, "tool_calls", "function_call", "train", "weight", *THOUGHT_FIELDS}
# Beyond these float32 loses the loss of this message, or of all others.
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6


def read_message(
    raw: object, place: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> Message:
    """A message as well as it can be read; what is wrong with it goes to `problems`."""
    if not isinstance(raw, dict):
        reason = "a message must be an object"
        problems.append(Problem("form", place, reason, "give role and content"))
        return Message("user", _UNREADABLE)
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES:
        role = _fix_role(raw, place, problems)
    if not isinstance(content, str):
        content = _fix_content(raw, role, place, problems)
    message = Message(role, content)
    if len(raw) > 2 or "content" not in raw:  # more than role and content
        _read_other_fields(raw, message, place, grammar, as_written=as_written, problems=problems)
    if role == "assistant" and not as_written:
        _take_tags_out(message, place, grammar, problems)
    message.content = _check_text(message.content, place, grammar, problems)
    if message.thoughts:
        message.thoughts = _check_text(message.thoughts, place, grammar, problems)
    return message


def _fix_role(raw: dict[str, Any], place: str, problems: list[Problem]) -> str:
    role = raw.get("role")
    field = f"{place}.role"
    if not isinstance(role, str):
        keys = ", ".join(list(raw)[:6]) or "none"
        reason = f"a message without a role; keys found: {keys}"
        problems.append(Problem("role", field, reason, f"give one of {', '.join(ROLES)}"))
        return "user"
    plain = role.strip().lower()
    known = _RENAMED_ROLES.get(plain, plain)
    if known in ROLES:
        problems.append(Problem("role", field, f"role {role!r}", f"read as {known}", True))
        return known
    hint = _ROLE_HINTS.get(plain)
    fix = f"did you mean {hint}?" if hint else f"give one of {', '.join(ROLES)}"
    problems.append(Problem("role", field, f"unknown role {role!r}", fix))
    return hint or "user"


def _fix_content(raw: dict[str, Any], role: str, place: str, problems: list[Problem]) -> str:
    content = raw.get("content")
    if content is None:
        return ""  # an answer may be a call only; any other emptiness is found later
    field = f"{place}.content"
    parts = _join_parts(content) if isinstance(content, list) else None
    if parts is not None:
        problems.append(Problem("content_type", field, "a list of text parts", "joined", True))
        return parts
    if role == "tool" and not _has_media(content):
        reason = "a tool result that is not a string"
        problems.append(Problem("content_type", field, reason, "written as JSON", True))
        return dump_json(content)
    reason = f"content is {name_type(content)}, not a string"
    if _has_media(content):
        reason = "a part that is not text, and this model reads text only"
    problems.append(Problem("content_type", field, reason, "give the text as a string"))
    return _UNREADABLE


def _join_parts(parts: list[Any]) -> str | None:
    """The text of an OpenAI part list; None where it is not one, or not text only."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    strings = [text for text in texts if isinstance(text, str)]
    is_text = bool(parts) and len(strings) == len(parts) and not _has_media(parts)
    return "".join(strings) if is_text else None


def _has_media(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in _MEDIA_PARTS for part in content
    )


def _read_other_fields(
    raw: dict[str, Any],
    message: Message,
    place: str,
    grammar: Grammar,
    *,
    as_written: bool,
    problems: list[Problem],
) -> None:
    read = _ANSWER_FIELDS if message.role == "assistant" else _FIELDS
    unused = [key for key, value in raw.items() if key not in read and value not in _NOTHING]
    if unused:
        fields = ", ".join(f"{place}.{key}" for key in unused)
        problems.append(Problem("unused_field", fields, "not read by training", "remove it"))
    message.extra = {key: raw[key] for key in raw if key in unused or key in _KEPT_FIELDS}
    if message.role != "assistant":
        return
    _read_loss_fields(raw, message, place, problems)
    message.thoughts = _read_thoughts(raw, place, problems)
    calls = raw.get("tool_calls")
    if calls is None and raw.get("function_call") is not None:
        calls = [raw["function_call"]]
    if calls is not None:
        message.tool_calls = _read_calls(
            calls, f"{place}.tool_calls", grammar, as_written=as_written, problems=problems
        )


def _read_thoughts(raw: dict[str, Any], place: str, problems: list[Problem]) -> str | None:
    fields = [key for key in THOUGHT_FIELDS if raw.get(key)]
    if not fields:
        return None
    thoughts = raw[fields[0]]
    if any(raw[key] != thoughts for key in fields[1:]):
        reason = f"thoughts in {' and '.join(fields)}, which differ"
        problems.append(Problem("tags", f"{place}.{fields[1]}", reason, "keep one of them"))
    if not isinstance(thoughts, str):
        reason = "thoughts must be a string"
        problems.append(Problem("content_type", f"{place}.{fields[0]}", reason, "fix it"))
        return None
    return thoughts if thoughts.strip() else None


def _read_loss_fields(
    raw: dict[str, Any], message: Message, place: str, problems: list[Problem]
) -> None:
    train, weight = raw.get("train", True), raw.get("weight", 1.0)
    if train is not None and not isinstance(train, bool):
        reason = f"train is {train!r}"
        problems.append(Problem("weight", f"{place}.train", reason, "give true or false"))
        return
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    is_usable = is_number and (weight == 0 or MIN_WEIGHT <= weight <= MAX_WEIGHT)
    if weight is not None and not is_usable:
        reason, fix = f"weight is {weight!r}", f"give 0 or {MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
        problems.append(Problem("weight", f"{place}.weight", reason, fix))
        return
    message.weight = 1.0 if weight is None else float(weight)
    message.is_trained = train is not False and message.weight > 0


def _read_calls(
    calls: object, field: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> list[ToolCall] | None:
    if isinstance(calls, str):
        calls = parse_json(calls)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        problems.append(Problem("tools", field, "tool calls must be a list", "fix it"))
        return None
    read = [
        _read_call(call, f"{field}[{index}]", grammar, as_written=as_written, problems=problems)
        for index, call in enumerate(calls)
    ]
    return (read or None) if not as_written else read


def _read_call(
    call: object, field: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> ToolCall:
    call = call if isinstance(call, dict) else {}
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        problems.append(Problem("tools", field, "a call without a function name", "give one"))
        return ToolCall("", "{}")
    if has_blank_run(name):
        problems.append(Problem("size", f"{field}.name", "too many blanks", "shorten it"))
        return ToolCall("", "{}")
    if not as_written and dump_json(name) != f'"{name}"':
        reason = f"the function name {name!r} breaks the JSON of the call"
        problems.append(Problem("tools", field, reason, "leave quotes and backslashes out"))
    field = f"{field}.arguments"
    arguments = function.get("arguments", {})
    if as_written:
        written = arguments if isinstance(arguments, str) else dump_json(arguments)
    else:
        written = dump_json(_parse_arguments(arguments, field, problems))
    if not as_written and (cut := grammar.tools.find_cut(written)):
        reason = f"a server would cut this call: {cut}"
        problems.append(Problem("tools", field, reason, "reword them"))
    if has_blank_run(written):
        problems.append(Problem("size", field, "too many blanks", "shorten them"))
    kept = ((key, value) for key, value in call.items() if key not in _CALL_FIELDS)
    return ToolCall(name, written, tuple(kept))


def _parse_arguments(arguments: object, field: str, problems: list[Problem]) -> dict[str, Any]:
    if arguments is None:  # how a table fills those of a function that takes none
        return {}
    if isinstance(arguments, str):  # the OpenAI form; a client parses it before the template
        arguments = parse_json(arguments) if arguments.strip() else {}
    if isinstance(arguments, dict):
        return arguments
    reason = "arguments that are not a JSON object"
    problems.append(Problem("tools", field, reason, "fix the JSON"))
    return {}


def _take_tags_out(message: Message, place: str, grammar: Grammar, problems: list[Problem]) -> None:
    """Split tags written as text into thoughts and answer."""
    field = f"{place}.content"
    if message.thoughts is None:
        tagged = grammar.answers.read(message.content)
        message.thoughts, message.content = tagged.thoughts, tagged.answer
        if tagged.repair:
            reason = f"tags not as the model writes them: {tagged.repair}"
            problems.append(Problem("tags", field, reason, "written anew", True))
        if tagged.error:
            fix = "fix the tags, or give reasoning_content and content apart"
            problems.append(Problem("tags", field, tagged.error, fix))
    elif grammar.answers.opens_thoughts(message.content):
        reason = "thoughts both as a field and as tags"
        problems.append(Problem("tags", field, reason, "keep one of the two"))


def take_calls_out(message: Message, place: str, grammar: Grammar, problems: list[Problem]) -> None:
    """Read calls written as text, so that the turn is rendered as a call."""
    if message.tool_calls:
        return
    if split := grammar.tools.split_calls(message.content):
        message.content, calls = split
        message.tool_calls = _read_calls(calls, place, grammar, as_written=False, problems=problems)


def _check_text(text: str, place: str, grammar: Grammar, problems: list[Problem]) -> str:
    """The text in NFC, as the tokenizer wants it, with no more blanks than it can split."""
    if token := grammar.controls.find(text):
        reason = f"holds {token}"
        _report_once("special_tokens", place, reason, "encoded as ordinary text", problems)
    if not text.isascii() and not is_normalized("NFC", text):
        _report_once("normalised", place, "text that is not NFC", "brought to NFC", problems)
        text = to_nfc(text)
    if has_blank_run(text):
        reason = f"a run of more than {MAX_BLANK_RUN:,} blanks, which the tokenizer cannot split"
        problems.append(Problem("size", place, reason, "shortened to one blank", True))
        return _BLANK_RUN.sub(lambda run: run[0][0], text)
    return text


def _report_once(kind: str, place: str, reason: str, fix: str, problems: list[Problem]) -> None:
    """For what counts by the record, however many of its texts it is in."""
    if all(problem.kind != kind for problem in problems):
        problems.append(Problem(kind, place, reason, fix, True))


def has_blank_run(text: str) -> bool:
    """Whether tiktoken's regex would give up on a text."""
    return len(text) >= MAX_BLANK_RUN and bool(_BLANK_RUN.search(text))
