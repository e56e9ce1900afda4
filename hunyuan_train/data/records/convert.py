"""Dialogues back to records: the canonical chat form, with thoughts in a field and no tags."""

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import zstandard

from hunyuan_train.data.dataset import CHOSEN
from hunyuan_train.data.records.preferences import Side, count_shared
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import DOCUMENT, Dialogue, Message
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.whole_file import FULL, open_whole

Record = dict[str, Any]


def to_record(dialogue: Dialogue, grammar: Grammar) -> Record:
    """A record that reads back as this dialogue, whatever form it had."""
    record: Record = dict(dialogue.extra)
    if dialogue.is_document:
        return record | {DOCUMENT: dialogue.messages[0].content}
    mode = _common_mode(dialogue)
    if mode:
        record["mode"] = mode
    if dialogue.tools:
        record |= {"tools": dialogue.tools, "now": dialogue.now}
    record["messages"] = [_to_message(message, mode, grammar) for message in dialogue.messages]
    return record


def to_preference(sides: Sequence[Side], grammar: Grammar) -> Record:
    """A record that reads back as these sides: a pair, or one answer with a label."""
    dialogues = [side.dialogue for side in sides]
    modes = {_common_mode(dialogue) for dialogue in dialogues}
    mode = modes.pop() if len(modes) == 1 else ""
    record: Record = dict(dialogues[0].extra)
    if mode:
        record["mode"] = mode
    if dialogues[0].tools:
        record |= {"tools": dialogues[0].tools, "now": dialogues[0].now}
    written = [
        [_to_message(message, mode, grammar) for message in dialogue.messages]
        for dialogue in dialogues
    ]
    num_shared = _count_shared(dialogues, grammar)
    prompt = [
        {key: message[key] for key in message if key != "train"}  # no part of it has loss
        for message in written[0][:num_shared]
    ]
    answers = [messages[num_shared:] for messages in written]
    if len(sides) == 1:
        is_good = sides[0].verdict == CHOSEN
        return record | {"prompt": prompt, "completion": answers[0], "label": is_good}
    return record | {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def _count_shared(dialogues: Sequence[Dialogue], grammar: Grammar) -> int:
    """Messages before the answers: those up to the last question, or that both sides share."""
    if len(dialogues) == 1:
        roles = [message.role for message in dialogues[0].messages]
        return len(roles) - roles[::-1].index("user") if "user" in roles else 0
    chosen, rejected = dialogues
    return count_shared(chosen, rejected, grammar)


def _common_mode(dialogue: Dialogue) -> str:
    """The mode to state; "" where none was stated for a plain one, and where turns differ."""
    modes = {
        message.mode
        for message in dialogue.messages
        if message.role == "assistant" and not message.is_context
    }
    if modes == {"plain"} and dialogue.stated_mode != "plain":
        return ""
    return modes.pop() if len(modes) == 1 else ""


def _to_message(message: Message, mode: str, grammar: Grammar) -> Record:
    record: Record = {"role": message.role, "content": message.content, **(message.extra or {})}
    if message.role == "user" and mode == "fast":
        record["content"] = message.content.removeprefix(grammar.queries.fast_prefix)
    if message.thoughts:
        record["reasoning_content"] = message.thoughts
    elif message.mode == "fast" and not mode:  # beside slow turns only the tags can say so
        record["content"] = grammar.answers.write("", message.content)
    if message.tool_calls:
        record["tool_calls"] = [
            {
                **dict(call.extra),
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.weight != 1.0:
        record["weight"] = message.weight
    if not message.is_trained and message.weight:
        record["train"] = False
    return record


@contextmanager
def open_output(path: Path) -> Iterator[IO[str]]:
    """Write a file whole or not at all, compressed where its name says so.

    Raises:
        DataError: it cannot be made there, or the disk is full.
    """
    if path.exists() and not path.is_file():  # a folder, or a device that a file would replace
        raise DataError(f"{path} is no ordinary file; give the name of a file to write")
    has_begun = False
    try:
        with open_whole(path) as file, _open_text(file, path.suffix) as text:
            has_begun = True
            yield text
    except OSError as error:
        if has_begun and error.errno not in FULL:  # of something else that was read or written
            raise
        raise DataError(
            f"{path} cannot be written ({error.strerror}); give a file in a folder that exists and "
            "can be written, on a disk with room"
        ) from error


def _open_text(file: BinaryIO, suffix: str) -> IO[str]:
    """Text for a file, compressed where its name says so; closing it leaves the file open."""
    if suffix == ".gz":
        return gzip.open(file, "wt", encoding="utf-8")
    if suffix == ".zst":
        return zstandard.open(file, "wt", encoding="utf-8")
    return open(file.fileno(), "w", encoding="utf-8", closefd=False)
