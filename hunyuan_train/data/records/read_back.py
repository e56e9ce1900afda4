"""Whether calls, written as the model is taught to write them, are read back as the same calls.

The text of each trained answer goes through the family's own parser, which mirrors those of the
servers. What it does not give back, no client would ever be sent.
"""

import json
from collections.abc import Iterator
from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.families.grammar.dialogue import Dialogue, ToolCall
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.segments import Rendering
from hunyuan_train.families.grammar.tokenizer import to_nfc

Json = Any
Calls = list[tuple[str, Json]]  # name and arguments of each


def check_read_back(dialogue: Dialogue, grammar: Grammar, problems: list[Problem]) -> None:
    """Find trained calls that a server would not read back as they are.

    Args:
        dialogue: with tools, as it is rendered.
        grammar: of the model.
        problems: what is wrong is added.
    """
    wanted = {
        index: message.tool_calls
        for index, message in enumerate(dialogue.messages)
        if message.tool_calls and message.is_trained and message.weight and not message.is_context
    }
    if not wanted:
        return
    texts = list(write_answers(grammar.render(dialogue), grammar.controls.end))
    read = [_list_calls(grammar.parse_output(text, has_tools=True).tool_calls) for text in texts]
    for index, calls in wanted.items():
        if not any(are_same_calls(_list_calls(calls), other) for other in read):
            names = ", ".join(call.name for call in calls)
            reason = f"calls of {names} that a server would not read back as they are given"
            fix = "give plain names and JSON arguments, or leave the record out"
            place = f"messages[{index}].tool_calls"
            problems.append(Problem("unparsed_calls", place, reason, fix))


def write_answers(rendering: Rendering, end: str) -> Iterator[str]:
    """What carries loss, answer by answer, as the model is to write it."""
    for target in rendering.targets:
        text = ""
        for segment in target.segments:
            if segment.weight and segment.is_special and segment.text == end:
                yield text
                text = ""
            elif segment.weight:
                text += segment.text


def _list_calls(calls: tuple[ToolCall, ...] | list[ToolCall]) -> Calls:
    return [(to_nfc(call.name), _read_arguments(call.arguments)) for call in calls]


def _read_arguments(text: str) -> Json:
    try:
        return json.loads(to_nfc(text) or "{}")
    except (ValueError, RecursionError):
        return text


def are_same_calls(given: Calls, read: Calls) -> bool:
    """Whether calls are others, whose arguments were read without a schema."""
    return len(given) == len(read) and all(
        ours[0] == theirs[0] and _is_same(ours[1], theirs[1])
        for ours, theirs in zip(given, read, strict=True)
    )


def _is_same(given: Json, read: Json) -> bool:
    """Whether a value is another, or the text of one that a server reads by its schema.

    Grammars that write values bare (Hy3) leave it to the schema whether `5` is a text.
    """
    if isinstance(given, dict) and isinstance(read, dict):
        return given.keys() == read.keys() and all(
            value == read[key] or _is_text_of(value, read[key]) for key, value in given.items()
        )
    return bool(given == read)


def _is_text_of(given: Json, read: Json) -> bool:
    return isinstance(given, str) and not isinstance(read, str) and _read_arguments(given) == read
