"""A dialogue as the rest of the package sees it, whatever form its record had."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from hunyuan_train.data.records.tags import strip_no_think

ROLES = ("system", "user", "assistant", "tool")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

Mode = Literal["plain", "fast", "slow"]
MODES: tuple[Mode, ...] = ("plain", "fast", "slow")  # their numbers in the cache and in batches

_FIRST_NOW = datetime(2024, 1, 1)
_NOW_SECONDS = 2 * 365 * 24 * 3600


class ToolCall(NamedTuple):
    """A function to call, its arguments as the JSON text that is rendered."""

    name: str
    arguments: str
    extra: tuple[tuple[str, Any], ...] = ()  # fields that conversion keeps, such as its id


@dataclass(slots=True)
class Message:
    """One turn. Its content carries no tags, unless the record was read as written."""

    role: str
    content: str
    thoughts: str | None = None  # None: not stated; "": an empty think block
    tool_calls: list[ToolCall] | None = None
    mode: Mode = "plain"  # of an assistant turn; plain: nothing marks it
    is_trained: bool = True
    is_context: bool = False  # bare turn of a slow dialogue: no target of its own under strip
    weight: float = 1.0
    extra: dict[str, Any] | None = None  # fields that conversion keeps


@dataclass(slots=True)
class Dialogue:
    """A record ready to render."""

    messages: list[Message]
    tools: list[Any] = field(default_factory=list)
    now: str = ""  # set where tools are
    stated_mode: str | None = None
    is_thinking_off: bool = False  # read as written: the template's empty think block at the end
    form: str = "messages"
    extra: dict[str, Any] = field(default_factory=dict)  # fields that conversion keeps


def hash_messages(messages: Sequence[Message], tools: Sequence[Any] = ()) -> int:
    """64 bits of what is said, by whom: the same in whatever form the record came."""
    parts: list[str] = []
    for message in messages:
        parts += (message.role, message.thoughts or "", message.content)
        if message.tool_calls:
            parts.append(str([(call.name, call.arguments) for call in message.tool_calls]))
    if tools:
        parts.append(str(tools))
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_question(messages: Sequence[Message]) -> int:
    """64 bits of all that comes before the last answer: what an evaluation must not share.

    The same in either mode: a question asked fast is no other question.
    """
    asked = [replace(one, content=strip_no_think(one.content)) for one in messages[:-1]]
    return hash_messages(asked)


def seed_now(messages: Sequence[Message]) -> str:
    """A time for a tools prompt that states none: fixed by the dialogue, never the wall clock."""
    seconds = hash_messages(messages) % _NOW_SECONDS
    return (_FIRST_NOW + timedelta(seconds=seconds)).strftime(TIME_FORMAT)
