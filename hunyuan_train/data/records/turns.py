"""Turns as other tools write them, each brought to a message with role, content and tool_calls.

ShareGPT writes `from` and `value`, ms-swift `tool_call` turns and pairs of question and answer,
Anthropic blocks inside of the content, OpenAI's Responses typed items. Only the shape is changed
here; what stands in the messages is read and checked in messages.py.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.families.grammar.dialogue import ROLES

Record = dict[str, Any]

NOTHING: tuple[object, ...] = (None, "", [], {})  # how a table fills a field that a record lacks

# Names of speakers that leave no doubt, beside the four roles.
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "function_output": "tool",
    "function_call_output": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
    "environment": "tool",
    "ipython": "tool",
} | {role: role for role in ROLES}
CALL_SPEAKERS = ("function_call", "tool_call", "tool_calls", "tool_use")

_TEXT_FIELDS = ("content", "value", "text")
_PAIRS = (
    ("human", "assistant"),
    ("human", "gpt"),
    ("user", "assistant"),
    ("input", "output"),
    ("query", "response"),
    ("question", "answer"),
    ("prompt", "response"),
)
_CALL_KEYS = ("id", "call_id", "type", "name", "function")
# What a call may name its arguments.
ARGUMENT_FIELDS = ("arguments", "parameters", "input", "args", "kwargs", "tool_input")
_JOINED_KEYS = ("role", "content", "tool_calls")
_BLOCK_KEYS = {
    "tool_use": {"id", "name", "input"},
    "tool_result": {"tool_use_id", "content"},
    "thinking": {"thinking", "signature"},
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IDLE_KEYS = {"type", "cache_control"}  # of a part, and nothing to learn from


def read_turns(turns: list[Any], field: str, problems: list[Problem]) -> list[Any]:
    """The messages of a list of turns; those that need no change are given back as they are."""
    if all([_is_plain(turn) for turn in turns]):
        return turns
    messages: list[Any] = []
    for index, turn in enumerate(turns):
        place = f"{field}[{index}]"
        for message in _read_turn(turn, place, problems):
            if not _join_call(message, messages):
                messages.append(message)
    return messages


def are_sharegpt(turns: list[Any]) -> bool:
    """Whether the speaker of any turn stands under `from`."""
    return any(isinstance(turn, dict) and "from" in turn and "role" not in turn for turn in turns)


def _is_plain(turn: object) -> bool:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or "from" in turn:
        return False
    return type(turn.get("content")) is str and turn["content"] != ""


def _read_turn(turn: object, place: str, problems: list[Problem]) -> list[Any]:
    if not isinstance(turn, dict):
        return [turn]
    speaker_field = _find_speaker(turn)
    if not speaker_field:
        return _split_pair(turn)
    written = turn[speaker_field]
    speaker = written.strip().lower()
    rest = {key: value for key, value in turn.items() if key != speaker_field}
    if speaker in CALL_SPEAKERS:
        if speaker_field == "role":
            fix = "read as a call of the assistant"
            problems.append(Problem("role", f"{place}.role", f"role {written!r}", fix, True))
        return [_read_call_turn(rest)]
    if speaker_field == "role":
        _compare_speakers(turn, speaker, place, problems)
        message = {"role": written, **_take_text(rest)}
    else:
        message = {"role": SPEAKERS.get(speaker, written), **_take_text(rest)}
    blocks = message.get("content")
    if isinstance(blocks, list) and (SPEAKERS.get(speaker) != "tool" or _are_parts(blocks)):
        _name_unread_keys(blocks, f"{place}.content", problems)
    if isinstance(blocks, list) and any(_is_block(block) for block in blocks):
        reason = "blocks as Anthropic writes them"
        problems.append(Problem("converted", f"{place}.content", reason, "read as messages"))
        return _take_blocks_apart(message, blocks, place, problems)
    return [message]


def _find_speaker(turn: Record) -> str:
    """The field that says who speaks; "" where none does."""
    for field in ("role", "from"):
        if isinstance(turn.get(field), str):
            return field
    return "type" if turn.get("type") in (*CALL_SPEAKERS, "function_call_output") else ""


def _compare_speakers(turn: Record, speaker: str, place: str, problems: list[Problem]) -> None:
    other = SPEAKERS.get(str(turn.get("from")).strip().lower())
    if other and other != SPEAKERS.get(speaker, other):
        reason = f"role says {turn['role']!r} and from says {turn['from']!r}"
        problems.append(Problem("role", f"{place}.from", reason, "keep one of them"))


def _take_text(turn: Record) -> Record:
    """The turn with its text under `content`; another text that differs stays under its name."""
    fields = (*_TEXT_FIELDS, "output") if turn.get("call_id") else _TEXT_FIELDS
    found = [field for field in fields if turn.get(field) not in NOTHING]
    content = turn[found[0]] if found else turn.get("content")
    rest = {
        key: value
        for key, value in turn.items()
        if not (key in fields and (value in NOTHING or value == content))
    }
    return {"content": content, **rest}


def _read_call_turn(turn: Record) -> Record:
    """A turn that is a call, in its text or in its own keys, as a message of the assistant."""
    message = _take_text(turn)
    calls = message.pop("content")
    if calls in NOTHING:
        keys = [key for key in turn if key in (*_CALL_KEYS, *ARGUMENT_FIELDS)]
        calls = {key: message.pop(key) for key in keys}
    return {"role": "assistant", "content": "", "tool_calls": list_calls(calls), **message}


def list_calls(calls: object) -> list[Any]:
    """Calls given as a list, as one object, or as the JSON of either."""
    if isinstance(calls, str) and (parsed := parse_json(calls)) is not None:
        calls = parsed
    return calls if isinstance(calls, list) else [calls]


def _join_call(message: object, messages: list[Any]) -> bool:
    """Add a call to the assistant's message before it: both are one turn of the model."""
    if not (messages and isinstance(message, dict) and isinstance(messages[-1], dict)):
        return False
    last = messages[-1]
    is_call = message.get("role") == "assistant" and message.get("content") == ""
    if not (is_call and last.get("role") == "assistant" and message.get("tool_calls")):
        return False
    if any(last.get(key) != message[key] for key in message if key not in _JOINED_KEYS):
        return False
    calls = [*list_calls(last.get("tool_calls") or []), *list_calls(message["tool_calls"])]
    messages[-1] = {**last, "tool_calls": calls}
    return True


def _split_pair(turn: Record) -> list[Any]:
    """A question and its answer in one object; what else it holds goes to the answer."""
    for question, answer in _PAIRS:
        if question in turn and answer in turn:
            rest = {key: turn[key] for key in turn if key not in ("system", question, answer)}
            pair = [
                {"role": "user", "content": turn[question]},
                {"role": "assistant", "content": turn[answer], **rest},
            ]
            if turn.get("system") in NOTHING:
                return pair
            return [{"role": "system", "content": turn["system"]}, *pair]
    return [turn]


def _is_block(block: object) -> bool:
    return isinstance(block, dict) and str(block.get("type")) in _BLOCK_KEYS


def _are_parts(items: list[Any]) -> bool:
    """Whether a list is a content in parts; a tool may return any other list."""
    return any(isinstance(item, dict) and item.keys() & {"type", "text"} for item in items)


def _name_unread_keys(parts: list[Any], place: str, problems: list[Problem]) -> None:
    """Refuse what a part of a content says beside its text, its call or its result."""
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        known = {"text"} if kind in (None, *_TEXT_PARTS) else _BLOCK_KEYS.get(str(kind))
        if known is None:  # a medium, which is refused where the text is read
            if isinstance(part.get("text"), str):
                reason = f"a part of type {kind!r}"
                fix = "give parts of type text"
                problems.append(Problem("content_type", f"{place}[{index}].type", reason, fix))
            continue
        for key in part.keys() - known - _IDLE_KEYS:
            if part[key] not in NOTHING and part[key] is not False:
                fix = "move it into the text or remove it, or choose unread_text=note"
                reason = "not read of a part of the content"
                problems.append(Problem("unread_text", f"{place}[{index}].{key}", reason, fix))


def _take_blocks_apart(
    message: Record, blocks: list[Any], place: str, problems: list[Problem]
) -> list[Record]:
    of_kind: dict[str, list[Any]] = {kind: [] for kind in _BLOCK_KEYS}
    texts = []
    for result in (block for block in blocks if isinstance(block, dict)):
        if isinstance(result.get("content"), list):
            _name_unread_keys(result["content"], f"{place}.content", problems)
    for block in blocks:
        if _is_block(block):
            of_kind[block["type"]].append(block)
        else:
            texts.append(block)
            if of_kind["tool_use"]:
                reason = "text after a call, where the model stops"
                problems.append(Problem("tools", f"{place}.content", reason, "put it before"))
    rest = {key: value for key, value in message.items() if key != "content"}
    own = {**rest, "content": texts or ""}
    thoughts = [block.get("thinking") for block in of_kind["thinking"]]
    if thoughts:
        own["reasoning_content"] = thoughts[0] if len(thoughts) == 1 else thoughts
    if of_kind["tool_use"]:
        own["tool_calls"] = [
            {key: block[key] for key in block if key in _BLOCK_KEYS["tool_use"]}
            for block in of_kind["tool_use"]
        ]
    results = [
        {"role": "tool", **{key: block[key] for key in _BLOCK_KEYS["tool_result"] & block.keys()}}
        for block in of_kind["tool_result"]
    ]
    is_all_results = results and own == {"role": "user", "content": ""}
    return results if is_all_results else [*results, own]
