"""Text that others wrote, made safe to be shown: on a terminal, in a log, in one line of a message.

A terminal obeys what is written to it. Control characters in a record, a key, a file or a tensor
name could clear the screen, change its title, hide text or turn its order around. All of them are
shown as JSON writes them (`\\u001b`), so that a line of JSON stays the same JSON.
"""

import json
import re

# Control characters but tab and newline, marks that turn the direction of text, separators of lines
# and paragraphs, tags and the byte order mark, which nothing shows, and lone surrogates, which no
# terminal can be sent.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ACTIVE_OR_BREAK = re.compile(f"[\t\n]|{_ACTIVE.pattern}")
MAX_NAME = 300  # characters; a file may hold a name of megabytes


def make_plain(text: str) -> str:
    """Escape whatever a terminal would obey; tabs and newlines stay."""
    return _ACTIVE.sub(_escape, text)


def make_plain_name(text: object, *, most: int = MAX_NAME) -> str:
    """The same for a name or value inside a sentence: it stays in its line, and has an end."""
    shown = str(text)
    shown = f"{shown[:most]}..." if len(shown) > most else shown
    return _ACTIVE_OR_BREAK.sub(_escape, shown)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character == "\x7f":  # the one of them that JSON leaves as it is
        return "\\u007f"
    return json.dumps(character)[1:-1]


def count_of(number: int, thing: str) -> str:
    """A number of things, such as "1 step" or "2,000 steps"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
