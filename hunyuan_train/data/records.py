"""One record to one `Dialogue`: its form, its fields, its order of turns, its tools, its mode.

Whatever is wrong is added as a `Problem` and reading goes on with the best reading there is; the
policy of each kind decides afterwards whether the dialogue is used.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from hunyuan_train.data.dialogue import TIME_FORMAT, Dialogue, Message, seed_now
from hunyuan_train.data.findings import Problem
from hunyuan_train.data.forms import to_chat_form
from hunyuan_train.data.messages import parse_json, read_message, take_calls_out
from hunyuan_train.data.modes import settle_modes
from hunyuan_train.data.tools_prompt import ASSISTANT_LABEL, TOOL_CALLS_OPEN, USER_LABEL

_FIELDS = frozenset({"id", "mode", "tools", "now", "messages"})
_TEMPLATE_FIELDS = ("chat_template_kwargs", "kwargs")


@dataclass(frozen=True, slots=True)
class Reading:
    """How records are read."""

    mode: str = "auto"  # of records that state none
    now: str | None = None  # of records that state none
    is_as_written: bool = False  # nothing parsed or mended: what the model's own template sees
    is_prompt: bool = False  # the last message is the question to answer


def read_dialogue(value: object, reading: Reading, problems: list[Problem]) -> Dialogue | None:
    """The dialogue in a decoded record, or None where no form fits."""
    record, form = to_chat_form(value, problems)
    if record is None:
        return None
    if form != "messages":
        problems.append(Problem("converted", "", f"{form} form", "read as messages"))
    messages = [
        read_message(raw, f"messages[{index}]", as_written=reading.is_as_written, problems=problems)
        for index, raw in enumerate(record["messages"])
    ]
    dialogue = Dialogue(messages, form=form, now=reading.now)
    if record.keys() != {"messages"}:
        _read_fields(record, dialogue, reading, problems)
    _check_tool_turns(dialogue, reading, problems)
    _check_texts(messages, problems)
    _order_systems(dialogue, problems)
    _order_turns(dialogue, reading, problems)
    if not reading.is_as_written:
        settle_modes(dialogue, reading.mode, problems)
    if dialogue.tools:
        _settle_now(dialogue, problems)
    return dialogue


def _read_fields(
    record: dict[str, Any], dialogue: Dialogue, reading: Reading, problems: list[Problem]
) -> None:
    unused = [key for key in record if key not in _FIELDS and record[key] is not None]
    if reading.is_as_written:
        _read_template_fields(record, dialogue)
        unused = [key for key in unused if key not in _TEMPLATE_FIELDS]
    if unused:
        problems.append(Problem("unused_field", ", ".join(unused), "not read by training", "—"))
    dialogue.extra = {key: record[key] for key in record if key in unused or key == "id"}
    if record.get("now") is not None:
        dialogue.now = record["now"]
    if record.get("mode") is not None:
        if record["mode"] in ("fast", "slow", "auto"):
            dialogue.stated_mode = record["mode"]
        else:
            reason = f"mode is {record['mode']!r}"
            problems.append(Problem("mode", "mode", reason, "give fast, slow or auto"))
    if record.get("tools"):
        _read_tools(record["tools"], dialogue, reading, problems)


def _read_template_fields(record: dict[str, Any], dialogue: Dialogue) -> None:
    """What a client hands the model's own template beside the messages."""
    for field in _TEMPLATE_FIELDS:
        if isinstance(record.get(field), dict):
            dialogue.now = record[field].get("now", dialogue.now)
            dialogue.is_thinking_off = record[field].get("enable_thinking") is False


def _read_tools(
    tools: object, dialogue: Dialogue, reading: Reading, problems: list[Problem]
) -> None:
    if isinstance(tools, str):
        tools = parse_json(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        problems.append(Problem("tools", "tools", "not a list of functions", "give OpenAI's form"))
        return
    dialogue.tools = tools if reading.is_as_written else [_wrap_tool(tool) for tool in tools]
    for index, tool in enumerate(dialogue.tools):
        function = tool.get("function")
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            field = f"tools[{index}]"
            problems.append(Problem("tools", field, "a tool without a function name", "give one"))


def _wrap_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The form in which clients send a function to a server."""
    return {"type": "function", "function": tool} if "function" not in tool else tool


def _check_tool_turns(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """Calls name listed tools, results follow calls, labels are not doubled."""
    is_open = False  # whether a result may come now
    for index, message in enumerate(dialogue.messages):
        place = f"messages[{index}]"
        if message.role == "tool" and not is_open:
            reason = "a tool result that follows no call"
            problems.append(Problem("tools", place, reason, "add the call before it"))
        if dialogue.tools and not reading.is_as_written:
            _read_labelled_text(message, place, problems)
        if message.role == "assistant":
            _check_calls(message, dialogue, place, problems)
            is_open = bool(message.tool_calls) or TOOL_CALLS_OPEN in message.content
        elif message.role != "tool":
            is_open = False


def _read_labelled_text(message: Message, place: str, problems: list[Problem]) -> None:
    if message.role == "assistant":
        message.content = message.content.removeprefix(ASSISTANT_LABEL)
        take_calls_out(message, place, problems)
    elif message.role == "user":
        message.content = message.content.removeprefix(USER_LABEL)


def _check_calls(message: Message, dialogue: Dialogue, place: str, problems: list[Problem]) -> None:
    if not message.tool_calls:
        return
    field = f"{place}.tool_calls"
    if not dialogue.tools:
        reason = "calls in a record without tools, which the template leaves out"
        problems.append(Problem("tools", field, reason, "add the list of tools"))
        return
    names = [tool.get("function", {}).get("name") for tool in dialogue.tools]
    for call in message.tool_calls:
        if call.name and call.name not in names:
            reason = f"calls {call.name!r}, which is not among the tools"
            problems.append(Problem("tools", field, reason, "add it to tools, or mend the name"))


def _check_texts(messages: list[Message], problems: list[Problem]) -> None:
    for index, message in enumerate(messages):
        if message.content.strip():
            continue
        if message.role == "user":
            reason = "a question without text"
            problems.append(Problem("empty_user", f"messages[{index}].content", reason, "write it"))
        elif message.role == "assistant" and message.tool_calls is None:
            reason = "an answer without text"
            problems.append(
                Problem("empty_answer", f"messages[{index}].content", reason, "write it")
            )


def _order_systems(dialogue: Dialogue, problems: list[Problem]) -> None:
    """At most one system message, the first, with text."""
    places = [index for index, message in enumerate(dialogue.messages) if message.role == "system"]
    if places in ([], [0]) and not (places and not dialogue.messages[0].content.strip()):
        return
    texts = [dialogue.messages[index].content for index in places]
    rest = [message for message in dialogue.messages if message.role != "system"]
    if places != [0]:
        reason = "several system messages" if len(places) > 1 else "a system message that is late"
        field = f"messages[{places[-1]}].role"
        problems.append(Problem("system", field, reason, "joined at the front", True))
    if not all(text.strip() for text in texts):
        reason = "a system message without text"
        problems.append(Problem("empty_system", "messages[0]", reason, "left out", True))
    joined = "\n\n".join(text for text in texts if text.strip())
    dialogue.messages = [Message("system", joined), *rest] if joined else rest


def _order_turns(dialogue: Dialogue, reading: Reading, problems: list[Problem]) -> None:
    """A question first, speakers in turn, an answer last."""
    turns = [message for message in dialogue.messages if message.role != "system"]
    if turns and turns[0].role != "user":
        reason = f"the dialogue starts with role {turns[0].role}, not with a question"
        problems.append(Problem("order", "messages[0].role", reason, "add the question before it"))
    if not any(message.role == "assistant" for message in turns) and not reading.is_prompt:
        reason = "no assistant message" if turns else "no messages"
        problems.append(Problem("no_answer", "messages", reason, "add the answer"))
        return
    if reading.is_as_written:
        _report_repeats(dialogue.messages, problems)
        return
    dialogue.messages = _merge_repeats(dialogue.messages, problems)
    if not reading.is_prompt:
        _drop_tail(dialogue, problems)


def _report_repeats(messages: list[Message], problems: list[Problem]) -> None:
    for index, (before, after) in enumerate(pairwise(messages), start=1):
        if before.role == after.role != "tool":
            field = f"messages[{index}].role"
            reason = f"two {after.role} messages in a row"
            problems.append(Problem("repeated_role", field, reason, "kept as written"))


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
    if dialogue.now is None:
        dialogue.now = seed_now(dialogue.messages)
    try:
        datetime.strptime(dialogue.now, TIME_FORMAT)
    except (TypeError, ValueError):
        reason = f"now is {dialogue.now!r}"
        problems.append(Problem("now", "now", reason, "write it like 2026-03-02 09:15:00"))
        dialogue.now = seed_now(dialogue.messages)
