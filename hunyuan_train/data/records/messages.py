"""One message of a record: role, content, thoughts, tool calls, loss fields."""

from typing import Any
from unicodedata import is_normalized

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.calls import CALL_FIELDS, find_calls, read_calls
from hunyuan_train.data.records.flags import name_flag, refuse_flag
from hunyuan_train.data.records.forms import THOUGHT_FIELDS
from hunyuan_train.data.records.loss import LOSS_FIELDS, read_answer_loss, refuse_prompt_loss
from hunyuan_train.data.records.texts import (
    BLANK_RUN,
    MAX_BLANK_RUN,
    UNREADABLE,
    has_blank_run,
    name_type,
    write_text,
)
from hunyuan_train.data.records.tools import RESULT_ID_FIELDS, RESULT_NAME_FIELDS, TOOL_FIELDS
from hunyuan_train.data.records.turns import NOTHING, SPEAKERS
from hunyuan_train.data.records.unread import note_unused, report_unread
from hunyuan_train.families.grammar.dialogue import ROLES, Message, dump_json
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.quoted_code import mask_code
from hunyuan_train.families.grammar.tokenizer import to_nfc

_MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")
# Roles that are read; the other names of SPEAKERS are asked for, as a hint.
_RENAMED_ROLES = {
    name: role for name, role in SPEAKERS.items() if role == "tool" or name in (*ROLES, "developer")
}
_KEPT_FIELDS = {"id", *RESULT_NAME_FIELDS, *RESULT_ID_FIELDS}  # the template writes none of them
_FIELDS = {"role", "content", "id"}
_FIELDS_OF = {
    "system": {*_FIELDS, *TOOL_FIELDS},
    "user": _FIELDS,
    "assistant": {*_FIELDS, *CALL_FIELDS, *LOSS_FIELDS, *THOUGHT_FIELDS},
    "tool": {*_FIELDS, *RESULT_NAME_FIELDS, *RESULT_ID_FIELDS},
}


def read_message(
    raw: object, place: str, grammar: Grammar, *, as_written: bool, problems: list[Problem]
) -> Message:
    """A message as well as it can be read; what is wrong with it goes to `problems`."""
    if not isinstance(raw, dict):
        reason = "a message must be an object"
        problems.append(Problem("form", place, reason, "give role and content"))
        return Message("user", UNREADABLE)
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES:
        role = _fix_role(raw, place, problems)
    is_exact = as_written and grammar.write_served is not None
    if is_exact and isinstance(content, list) and _is_texts(content):
        content = grammar.joins_parts.join(content)
    if not isinstance(content, str):
        content = _fix_content(raw, role, place, grammar, problems)
    message = Message(role, content)
    if len(raw) > 2 or "content" not in raw:  # more than role and content
        _read_other_fields(raw, message, place, grammar, as_written=as_written, problems=problems)
    if role == "assistant" and not as_written:
        _take_tags_out(message, place, grammar, problems)
    if is_exact:  # shown as the model's own template writes it, and never encoded
        return message
    message.content = check_text(message.content, place, grammar, problems)
    if message.thoughts:
        message.thoughts = check_text(message.thoughts, place, grammar, problems)
    if role == "assistant" and not as_written:
        _find_foreign_markers(message, place, grammar, problems)
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
    hint = SPEAKERS.get(plain)
    fix = f"did you mean {hint}?" if hint else f"give one of {', '.join(ROLES)}"
    problems.append(Problem("role", field, f"unknown role {role!r}", fix))
    return hint or "user"


def _fix_content(
    raw: dict[str, Any], role: str, place: str, grammar: Grammar, problems: list[Problem]
) -> str:
    content = raw.get("content")
    if content is None:
        return ""  # an answer may be a call only; any other emptiness is found later
    field = f"{place}.content"
    if (text := write_text(content, joined_by=grammar.joins_parts)) is not None:
        reason = f"content is {name_type(content)}"
        problems.append(Problem("content_type", field, reason, "read as its text", True))
        return text
    if role == "tool" and not _has_media(content):
        reason = "a tool result that is not a string"
        problems.append(Problem("content_type", field, reason, "written as JSON", True))
        return dump_json(content)
    reason, fix = f"content is {name_type(content)}, not a string", "give the text as a string"
    if _has_media(content):
        reason = "a part that is not text, and this model reads text only"
    elif _is_texts(content):
        reason = "content is a list of texts, which may be parts or alternatives"
        fix = "give one text, or a record for each"
    problems.append(Problem("content_type", field, reason, fix))
    return UNREADABLE


def _is_texts(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(part, str) for part in content)


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
    read = _FIELDS_OF[message.role]
    unread = {key: raw[key] for key in raw if key not in read and raw[key] not in NOTHING}
    message.extra = {key: raw[key] for key in raw if key in unread or key in _KEPT_FIELDS}
    if as_written:
        note_unused(unread, f"{place}.", problems)
    elif unread:
        if message.role != "assistant":
            unread = refuse_prompt_loss(unread, place, problems)
            note_unused([key for key in unread if key in LOSS_FIELDS], f"{place}.", problems)
            unread = {key: unread[key] for key in unread if key not in LOSS_FIELDS}
        report_unread(unread, f"{place}.", read - _KEPT_FIELDS, [raw], problems)
    if message.role != "assistant":
        return
    read_answer_loss(raw, message, place, problems)
    message.thoughts = None
    if as_written and grammar.write_served is not None:  # the two fields that a template reads
        own = (raw[name] for name in THOUGHT_FIELDS[:2] if isinstance(raw.get(name), str))
        message.thoughts = next(own, None)
    if message.thoughts is None:
        message.thoughts = _read_thoughts(raw, place, problems)
    calls, field = find_calls(raw, place, problems)
    if as_written:  # an empty list is written too
        calls, field = raw.get("tool_calls", calls), f"{place}.tool_calls"
    if calls is not None:
        message.tool_calls = read_calls(
            calls, field, grammar, as_written=as_written, problems=problems
        )


def _read_thoughts(raw: dict[str, Any], place: str, problems: list[Problem]) -> str | None:
    fields = [key for key in THOUGHT_FIELDS if raw.get(key) not in NOTHING]
    if not fields:
        return None
    thoughts = raw[fields[0]]
    if name_flag(thoughts):
        problems.append(refuse_flag(f"{place}.{fields[0]}", thoughts))
        return None
    if any(raw[key] != thoughts for key in fields[1:]):
        reason = f"thoughts in {' and '.join(fields)}, which differ"
        problems.append(Problem("tags", f"{place}.{fields[1]}", reason, "keep one of them"))
    if not isinstance(thoughts, str):
        reason = f"thoughts must be a string, here they are {name_type(thoughts)}"
        fix = "give them as one text"
        problems.append(Problem("content_type", f"{place}.{fields[0]}", reason, fix))
        return None
    return thoughts if thoughts.strip() else None


def _take_tags_out(message: Message, place: str, grammar: Grammar, problems: list[Problem]) -> None:
    """Split tags written as text into thoughts and answer."""
    field = f"{place}.content"
    if message.thoughts is None:
        tagged = grammar.answers.read(message.content)
    else:
        tagged = grammar.answers.read_apart(message.thoughts, message.content)
    message.thoughts, message.content = tagged.thoughts, tagged.answer
    if tagged.repair:
        reason = f"tags not as the model writes them: {tagged.repair}"
        problems.append(Problem(tagged.kind, field, reason, "written anew", True))
    if tagged.error:
        fix = "fix the tags, or give reasoning_content and content apart"
        problems.append(Problem(tagged.kind, field, tagged.error, fix))


def _find_foreign_markers(
    message: Message, place: str, grammar: Grammar, problems: list[Problem]
) -> None:
    found = dict.fromkeys(
        marker
        for text in (message.thoughts, message.content)
        if text
        for marker in grammar.answers.find_foreign(text)
    )
    if found:
        reason = f"marks that this model does not write: {' '.join(found)}"
        fix = (
            "give thoughts as reasoning_content and calls as tool_calls; foreign_markers=note "
            "teaches them as they are"
        )
        problems.append(Problem("foreign_markers", f"{place}.content", reason, fix))


def take_calls_out(message: Message, place: str, grammar: Grammar, problems: list[Problem]) -> None:
    """Read calls written as text, so that the turn is rendered as a call."""
    split = grammar.tools.split_calls(message.content)
    if split and not message.tool_calls:
        message.content, calls = split
        message.tool_calls = read_calls(calls, place, grammar, as_written=False, problems=problems)
    text = mask_code(message.content)
    if mark := next((mark for mark in grammar.tools.call_marks if mark in text), ""):
        reason = f"{mark} in a text that is not read as calls"
        fix = "give all calls as tool_calls, and the text before them as content"
        problems.append(Problem("tools", f"{place}.content", reason, fix))


def take_marks_off(message: Message, place: str, grammar: Grammar, problems: list[Problem]) -> None:
    """A tool's result without the marks that rendering puts around it."""
    opened, closed = grammar.tools.result_marks
    text = message.content.strip()
    if text.startswith(opened) and text.endswith(closed):
        message.content = text.removeprefix(opened).removesuffix(closed).strip("\n")
    if opened in message.content or closed in message.content:
        reason = f"{opened} or {closed} inside of a result, which they would end"
        problems.append(Problem("tools", f"{place}.content", reason, "remove it"))


def check_text(text: str, place: str, grammar: Grammar, problems: list[Problem]) -> str:
    """The text in NFC, as the tokenizer wants it, with no more blanks than it can split."""
    if token := grammar.controls.find(text):
        reason = f"holds {token}"
        _report_once("special_tokens", place, reason, "encoded as ordinary text", problems)
    lost = [character for character in grammar.missing if character in text]
    if lost:
        reason = f"holds {', '.join(map(repr, lost))}, which the vocabulary cannot encode"
        _report_once("normalised", place, reason, "left out", problems)
        for character in lost:
            text = text.replace(character, "")
    if not text.isascii() and not is_normalized("NFC", text):
        _report_once("normalised", place, "text that is not NFC", "brought to NFC", problems)
        text = to_nfc(text)
    if has_blank_run(text):
        reason = f"a run of more than {MAX_BLANK_RUN:,} blanks, which the tokenizer cannot split"
        problems.append(Problem("size", place, reason, "shortened to one blank", True))
        return BLANK_RUN.sub(lambda run: run[0][0], text)
    return text


def _report_once(kind: str, place: str, reason: str, fix: str, problems: list[Problem]) -> None:
    """For what counts by the record, however many of its texts it is in."""
    if all(problem.kind != kind for problem in problems):
        problems.append(Problem(kind, place, reason, fix, True))
