"""One record to one `Dialogue`: its form, its fields, its order of turns, its tools, its mode.

Whatever is wrong is added as a `Problem` and reading goes on with the best reading there is; the
policy of each kind decides afterwards whether the dialogue is used.

The door of `records`: a decoded record goes in, a `Dialogue` comes out.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from hunyuan_train.data.findings import POLICIES, Problem
from hunyuan_train.data.records.documents import is_document, read_document
from hunyuan_train.data.records.flags import TEMPLATE_FIELDS, take_flags, take_options
from hunyuan_train.data.records.forms import THOUGHT_FIELDS, to_chat_form
from hunyuan_train.data.records.hashes import seed_now
from hunyuan_train.data.records.loss import RECORD_LOSS_FIELDS, apply_record_loss
from hunyuan_train.data.records.messages import read_message, take_calls_out, take_marks_off
from hunyuan_train.data.records.modes import settle_modes
from hunyuan_train.data.records.nulls import drop_filled_nulls
from hunyuan_train.data.records.read_back import check_read_back
from hunyuan_train.data.records.texts import has_blank_run
from hunyuan_train.data.records.tools import check_calls, lift_tools, match_results, read_tools
from hunyuan_train.data.records.unread import note_unused, report_unread
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import TIME_FORMAT, Dialogue, Message, dump_json
from hunyuan_train.families.grammar.interface import Grammar

# Roles by their first letters: the order that needs no second look. No other order is refused for
# that alone; tools and results have rules of their own.
_REGULAR = re.compile("s?(?:ua)+")

# What records are: dialogues; pairs of answers, one of them preferred; or answers with a label, to
# which pairs are taken apart.
RecordKind = Literal["dialogues", "pairs", "judged"]

_TIME_FIX = "write it like 2026-03-02 09:15:00"
_FIELDS = frozenset({"id", "mode", "tools", "now", "messages"})


@dataclass(frozen=True, slots=True)
class Reading:
    """How records are read."""

    grammar: Grammar  # of the model that is to learn from them
    records: RecordKind = "dialogues"
    mode: str = "auto"  # of records that state none
    effort: str = ""  # how much to think, of records that do not say and a grammar that asks
    now: str = ""  # of records that state none; "" for a time seeded by the dialogue
    # Nothing parsed or fixed: what the model's own template makes of the messages. Does not hold
    # for a record that states a mode or thoughts, which that template knows nothing of.
    is_as_written: bool = False
    is_prompt: bool = False  # the last message is the question to answer

    def __post_init__(self) -> None:
        if self.now and not _read_time(self.now):
            raise DataError(f"now is {self.now!r}; {_TIME_FIX}")


def read_dialogue(value: object, reading: Reading, problems: list[Problem]) -> Dialogue | None:
    """The dialogue in a decoded record, or None where no form fits."""
    if isinstance(value, dict) and is_document(value):
        return read_document(value, reading.grammar, problems)
    knows_thoughts = reading.grammar.write_served is not None
    value, options, stated_mode = _take_stated(value, reading, problems)
    is_exact = reading.is_as_written and knows_thoughts
    record, form = _find_messages(value, problems, is_exact=is_exact)
    if record is None:
        return None
    if reading.is_as_written and not knows_thoughts and (stated_mode or _states_thinking(record)):
        reading = replace(reading, is_as_written=False)
    if not reading.is_as_written:
        record = drop_filled_nulls(lift_tools(record, problems), problems)
    messages = [
        read_message(
            raw,
            f"messages[{index}]",
            reading.grammar,
            as_written=reading.is_as_written,
            problems=problems,
        )
        for index, raw in enumerate(record["messages"])
    ]
    dialogue = Dialogue(messages, form=form, now=reading.now, stated_mode=stated_mode or None)
    dialogue.template_options = options
    if len(record) > 1:  # more than messages
        _read_fields(record, dialogue, reading, problems)
    if not is_exact:  # its template takes anything in any order
        _check_texts(messages, reading, problems)
        _order_if_needed(dialogue, reading, problems)
    _settle_effort(dialogue, reading, problems)
    if not (reading.is_as_written or reading.is_prompt):  # a server adds nothing to a prompt
        settle_modes(dialogue, reading.mode, reading.grammar, problems)
    if dialogue.tools:
        _settle_tools(dialogue, reading, problems)
    return dialogue


def _find_messages(
    value: object, problems: list[Problem], *, is_exact: bool
) -> tuple[dict[str, Any] | None, str]:
    """The record with its messages, whatever its form, and the name of that.

    Args:
        is_exact: messages are taken as they are, and no call is joined to the answer before it.
    """
    record, form = to_chat_form(value, problems)
    if record is not None and form != "messages":
        problems.append(Problem("converted", "", f"{form} form", "read as messages"))
    if is_exact and form == "messages" and isinstance(value, dict):
        return value, form
    return record, form


def _settle_tools(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Give the time that a tools prompt shows, and see whether calls are read back as given."""
    _settle_now(dialogue, problems)
    is_refused = any(  # whatever the policy: it may not even be rendered
        "note" not in POLICIES[problem.kind].allowed and not problem.is_repaired
        for problem in problems
    )
    if not (reading.is_as_written or reading.is_prompt or is_refused):
        check_read_back(dialogue, reading.grammar, problems)


def _take_stated(
    value: object, reading: Reading, problems: list[Problem]
) -> tuple[object, dict[str, Any], str]:
    """The record without what it says to a template, that, and the mode which it states."""
    if not isinstance(value, dict):
        return value, {}, ""
    value, options = take_options(
        value, reading.grammar, reading.effort, problems, as_written=reading.is_as_written
    )
    value, mode = take_flags(value, problems, with_template_fields=not reading.is_as_written)
    return value, options, mode


def _settle_effort(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Take the mode of a record from how much it says to think, where it does."""
    if reading.is_as_written or not dialogue.template_options:
        return
    field = reading.grammar.options[0]
    effort = dialogue.template_options[field]
    mode = reading.grammar.efforts[effort]
    if dialogue.stated_mode not in (None, "auto", mode):
        reason = f"mode says {dialogue.stated_mode} and {field} says {effort}"
        problems.append(Problem("mode", "mode", reason, "keep one of them"))
    dialogue.stated_mode = mode
    dialogue.extra[field] = effort  # which conversion keeps


def _order_if_needed(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    messages = dialogue.messages
    is_regular = _REGULAR.fullmatch("".join([message.role[0] for message in messages]))
    has_calls = dialogue.tools or any([message.tool_calls for message in messages])
    if not is_regular or has_calls or not messages[0].content.strip():
        _order(dialogue, reading, problems)


def _order(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Fix the order of turns and report what cannot be fixed."""
    if any(problem.kind == "role" and not problem.is_repaired for problem in problems):
        return  # who speaks is not known, so nothing can be said of their order
    _order_systems(dialogue, reading, problems)
    if not reading.is_as_written:
        _check_tool_turns(dialogue, reading, problems)
        _order_turns(dialogue, reading, problems)
    _check_start(dialogue, problems)


def _states_thinking(record: dict[str, Any]) -> bool:
    return any(
        message.get(field)
        for message in record["messages"]
        if isinstance(message, dict)
        for field in THOUGHT_FIELDS
    )


def _read_fields(
    record: dict[str, Any], dialogue: Dialogue, reading: Reading, problems: list[Problem]
) -> None:
    unread = {key: record[key] for key in record if key not in _FIELDS and record[key] is not None}
    if reading.is_as_written:
        _read_template_fields(record, dialogue)
        unread = {key: unread[key] for key in unread if key not in TEMPLATE_FIELDS}
        note_unused(unread, "", problems)
    elif unread:
        apply_record_loss(unread, dialogue.messages, problems)
        unread = {key: unread[key] for key in unread if key not in RECORD_LOSS_FIELDS}
        report_unread(unread, "", _FIELDS - {"id"}, record["messages"], problems)
    dialogue.extra = {key: record[key] for key in record if key in unread or key == "id"}
    dialogue.now = record.get("now") or dialogue.now
    if record.get("mode") == "auto":
        dialogue.stated_mode = dialogue.stated_mode or "auto"
    elif record.get("mode") not in (None, "fast", "slow", "plain"):
        reason = f"mode is {record['mode']!r}"
        problems.append(Problem("mode", "mode", reason, "give fast, slow, plain or auto"))
    if record.get("tools"):
        _read_tools(record["tools"], dialogue, reading, problems)


def _read_template_fields(record: dict[str, Any], dialogue: Dialogue) -> None:
    """What a client hands the model's own template beside the messages."""
    for field in TEMPLATE_FIELDS:
        if isinstance(record.get(field), dict):
            dialogue.now = record[field].get("now", dialogue.now)
            dialogue.template_options = record[field] | dialogue.template_options


def _read_tools(
    tools: object, dialogue: Dialogue, reading: Reading, problems: list[Problem]
) -> None:
    dialogue.tools = read_tools(tools, as_written=reading.is_as_written, problems=problems)
    if has_blank_run(dump_json(dialogue.tools)):
        problems.append(Problem("size", "tools", "too many blanks", "shorten them"))


def _check_tool_turns(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Calls name listed tools, results follow calls, labels are not doubled."""
    is_open = False  # whether a result may come now
    for index, message in enumerate(dialogue.messages):
        place = f"messages[{index}]"
        if message.role == "tool" and not is_open:
            reason, fix = "a tool result that follows no call", "add the call before it"
            if not dialogue.tools:
                reason, fix = "a tool result in a record without tools", "add the list of tools"
            problems.append(Problem("tools", place, reason, fix))
        if dialogue.tools:
            _read_labelled_text(message, place, reading.grammar, problems)
        if message.role == "assistant":
            check_calls(message, dialogue, place, problems)
            is_open = bool(message.tool_calls)
            if not reading.is_prompt:  # a server shows results as they come
                match_results(dialogue.messages, index, problems)
        elif message.role != "tool":
            is_open = False


def _read_labelled_text(
    message: Message, place: str, grammar: Grammar, problems: list[Problem]
) -> None:
    message.content = message.content.removeprefix(grammar.tools.labels.get(message.role, ""))
    if message.role == "assistant":
        take_calls_out(message, place, grammar, problems)
    elif message.role == "tool":
        take_marks_off(message, place, grammar, problems)


def _check_texts(messages: list[Message], reading: Reading, problems: list[Problem]) -> None:
    for index, message in enumerate(messages):
        if not _is_empty(message.content, reading):
            continue
        field = f"messages[{index}].content"
        if message.role == "user":
            problems.append(Problem("empty_user", field, "a question without text", "write it"))
        elif message.role == "assistant" and not (message.tool_calls or reading.is_as_written):
            problems.append(Problem("empty_answer", field, "an answer without text", "write it"))


def _is_empty(text: str, reading: Reading) -> bool:
    """The template takes blanks for text; a reader does not."""
    return not text or (text.isspace() and not reading.is_as_written)


def _order_systems(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """At most one system message, the first, with text."""
    messages = dialogue.messages
    places = [index for index, message in enumerate(messages) if message.role == "system"]
    texts = [messages[index].content for index in places]
    if places == [0] and reading.is_as_written and dialogue.tools:
        return  # the template writes it, empty or not
    if any(_is_empty(text, reading) for text in texts):
        reason = "a system message without text"
        problems.append(Problem("empty_system", "messages[0]", reason, "left out", True))
    elif places in ([], [0]):
        return
    if places != [0]:
        reason = "several system messages" if len(places) > 1 else "a system message that is late"
        field = f"messages[{places[-1]}].role"
        problems.append(Problem("system", field, reason, "joined at the front", True))
    joined = reading.grammar.joins_systems.join(
        text for text in texts if not _is_empty(text, reading)
    )
    rest = [message for message in messages if message.role != "system"]
    dialogue.messages = [Message("system", joined), *rest] if joined else rest


def _check_start(dialogue: Dialogue, problems: list[Problem]) -> None:
    turns = [message for message in dialogue.messages if message.role != "system"]
    if not turns:
        reason = "a system message and no more" if dialogue.messages else "no messages"
        problems.append(Problem("no_answer", "messages", reason, "add the dialogue"))
    elif turns[0].role != "user":
        reason = f"the dialogue starts with role {turns[0].role}, not with a question"
        problems.append(Problem("order", "messages[0].role", reason, "add the question before it"))


def _order_turns(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Speakers in turn, an answer last."""
    dialogue.messages = _merge_repeats(dialogue.messages, problems)
    if reading.is_prompt:
        return
    if any(message.role == "assistant" for message in dialogue.messages):
        _drop_tail(dialogue, problems)
    elif any(message.role != "system" for message in dialogue.messages):  # see `_check_start`
        problems.append(Problem("no_answer", "messages", "no assistant message", "add the answer"))


def _merge_repeats(messages: list[Message], problems: list[Problem]) -> list[Message]:
    merged: list[Message] = []
    for index, message in enumerate(messages):
        if not (merged and merged[-1].role == message.role != "tool"):
            merged.append(message)
            continue
        last = merged[-1]
        is_joinable = last.thoughts == message.thoughts and not (
            last.tool_calls or message.tool_calls
        )
        field = f"messages[{index}].role"
        reason = f"two {message.role} messages in a row"
        fix = "joined by an empty line" if is_joinable else "make one of them"
        problems.append(Problem("repeated_role", field, reason, fix, is_joinable))
        last.content = f"{last.content}\n\n{message.content}"
    return merged


def _drop_tail(dialogue: Dialogue, problems: list[Problem]) -> None:
    """Leave out what follows the last answer: nothing learns from it."""
    messages = dialogue.messages
    end = max(index for index, message in enumerate(messages) if message.role == "assistant") + 1
    if end < len(messages):
        reason = f"{len(messages) - end} message(s) after the last answer"
        problems.append(Problem("trailing_user", f"messages[{end}]", reason, "left out", True))
        dialogue.messages = messages[:end]


def _settle_now(dialogue: Dialogue, problems: list[Problem]) -> None:
    if not dialogue.now:
        dialogue.now = seed_now(dialogue.messages)
    elif written := _read_time(dialogue.now):
        dialogue.now = written
    else:
        problems.append(Problem("now", "now", f"now is {dialogue.now!r}", _TIME_FIX))


def _read_time(text: object) -> str:
    """A time as the template writes it; "" where it is none."""
    try:
        return datetime.strptime(str(text), TIME_FORMAT).strftime(TIME_FORMAT)
    except ValueError:
        return ""
