"""What is said in a dialogue as 64 bits: to find repeats, to hold data out, to seed a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hunyuan_train.families.grammar.dialogue import DOCUMENT, TIME_FORMAT, Message
from hunyuan_train.families.grammar.interface import Grammar

_FIRST_NOW = datetime(2024, 1, 1)
_NOW_SECONDS = 2 * 365 * 24 * 3600


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


def hash_question(messages: Sequence[Message], grammar: Grammar) -> int:
    """64 bits of all that comes before the last answer: what an evaluation must not share.

    The same in either mode: a question asked fast is no other question.
    """
    if messages[0].role == DOCUMENT:  # all of it is what must not be shared
        return hash_messages(messages)
    asked = [replace(one, content=grammar.queries.strip(one.content)) for one in messages[:-1]]
    return hash_messages(asked)


def seed_now(messages: Sequence[Message]) -> str:
    """A time for a tools prompt that states none: fixed by the dialogue, never the wall clock."""
    seconds = hash_messages(messages) % _NOW_SECONDS
    return (_FIRST_NOW + timedelta(seconds=seconds)).strftime(TIME_FORMAT)
