"""Fields that training does not read: text in them is refused by name, the rest is noted by name.

A field counts as text by its name and its value: `context`, `solution` or `images` beside the
messages is something that the author of the data meant to be learned from; `source` or `score` is
not. Text that stands in the messages too is not lost, and only noted.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.forms import THOUGHT_FIELDS
from hunyuan_train.data.records.turns import NOTHING

Record = dict[str, Any]

# By their letters alone: case, blanks, hyphens and underscores do not count.
_MEDIA_NAME = re.compile(
    "(input)?(image|picture|audio|video|file|attachment)s?(url|path|file|name|data|bytes)?s?"
    "|media|pixelvalues|objects"
)
_TEXT_NAME = re.compile(
    "messages?|conversations?|dialog(ue)?s?|turns|history|parts"
    "|(system|sys|developer)(prompt|message|instruction|content)?s?|instructions?|inputs?"
    "|inputmessages|(context|document|passage|article|background|evidence|choice|option)s?"
    "|(prompt|question|problem)s?|quer(y|ies)|target|refusal|groundtruth"
    "|(final|expected|correct|reference|gold|golden|best|model|assistant|target)?"
    "(completion|response|answer|output|solution|generation|reply|replies)s?"
    "|(chosen|rejected)(responses?|messages)?|contents?|texts?|value"
    "|reasoning(content|details|steps|text)?|think(ing)?|thoughts?|(complex)?cot|chainofthought"
    "|rationales?|analysis|explanation|arguments|parameters|functions"
    "|tools?|(tool|function)(calls?|uses?|outputs?|results?|responses?)"
    f"|{_MEDIA_NAME.pattern}"
)
_FIX = "move it into the messages or remove it, or choose unread_text=note to train without it"


def report_unread(
    fields: Record, place: str, known: Iterable[str], messages: list[Any], problems: list[Problem]
) -> None:
    """Say which fields of a record or of a message are not read.

    Args:
        fields: those that are left when all that is read is taken away.
        place: what stands before their names: "" or `messages[3].`.
        known: the names that are read, in case one is misspelled.
        messages: those of the record: what stands in them is not lost.
    """
    spelled = {_spell(name): name for name in known}
    noted: Record = {}
    for name, value in fields.items():
        if value in NOTHING:
            continue
        meant = spelled.get(_spell(name))
        if meant and meant not in fields and meant != name:
            reason, fix = f"{name} is not read", f"did you mean {meant}?"
            problems.append(Problem("unread_text", f"{place}{name}", reason, fix))
        elif _TEXT_NAME.fullmatch(_spell(name)) and _holds_more(value, messages):
            reason = "text that training does not read"
            if _MEDIA_NAME.fullmatch(_spell(name)):
                reason = "a medium, and this model reads text only"
            problems.append(Problem("unread_text", f"{place}{name}", reason, _FIX))
        else:
            noted[name] = value
    note_unused(noted, place, problems)


def note_unused(fields: Iterable[str], place: str, problems: list[Problem]) -> None:
    """Name fields that are nothing to learn from."""
    if names := ", ".join(f"{place}{field}" for field in fields):
        fix = "remove it, or fix its name"
        problems.append(Problem("unused_field", names, "not read by training", fix))


def _holds_more(value: object, messages: list[Any]) -> bool:
    """Whether a value says something that the messages do not."""
    if isinstance(value, bool):
        return False
    texts = [text.strip() for text in _walk_texts(value)]
    if not texts or isinstance(value, int | float):
        return True
    said = {text.strip() for message in messages for text in _walk_texts(_said_by(message))}
    return not all(text in said for text in texts if text)


def _said_by(message: object) -> object:
    """What training reads of a message, as its author wrote it."""
    if not isinstance(message, dict):
        return ()
    return [message.get(field) for field in ("content", *THOUGHT_FIELDS)]


def _walk_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk_texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("role", "from", "type", "id"):
                yield from _walk_texts(item)


def _spell(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
