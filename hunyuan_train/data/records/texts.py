"""Texts of a record: what reads as one, and what the tokenizer cannot split."""

import re
from typing import Any

from hunyuan_train.families.grammar.dialogue import dump_json

UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # in a record that is refused: not empty as well
_TEXT_PARTS = (None, "text", "input_text", "output_text")

# tiktoken's regex gives up at a run of about a million; no honest text comes near this.
MAX_BLANK_RUN = 200_000
BLANK_RUN = re.compile(rf"\s{{{MAX_BLANK_RUN},}}")


def write_text(value: object, *, joined_by: str = "\n") -> str | None:
    """The one text that a value can mean; None where there is none, or more than one.

    A number is written as JSON writes it. Parts of an OpenAI content list are joined as servers
    join them: by newlines, or as the model's template does. Several bare strings may as well be
    alternatives, unless one beside them says that they are parts.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dump_json(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, list) and any(_is_text_part(part) for part in value):
        texts = [part["text"] if _is_text_part(part) else part for part in value]
        return joined_by.join(texts) if all(isinstance(text, str) for text in texts) else None
    return None


def _is_text_part(part: Any) -> bool:  # noqa: ANN401  # whatever a list holds
    return (
        isinstance(part, dict)
        and part.get("type") in _TEXT_PARTS
        and isinstance(part.get("text"), str)
    )


def name_type(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a bool"}
    return names.get(type(value), "a number")


def has_blank_run(text: str) -> bool:
    """Whether tiktoken's regex would give up on a text."""
    return len(text) >= MAX_BLANK_RUN and bool(BLANK_RUN.search(text))
