"""Text of data as one line for a terminal, which must not obey what stands in it."""

from collections.abc import Iterable
from itertools import groupby

from hunyuan_train.families.grammar.segments import Segment
from hunyuan_train.plain_text import make_plain_name


def write_part(text: str, max_length: int) -> str:
    """The text without its middle where it is longer, and its line breaks as escapes."""
    half = max_length // 2
    shown = text if len(text) <= max_length else f"{text[:half]} … {text[-half:]}"
    return make_plain_name(shown, most=len(shown))


def write_segments(segments: Iterable[Segment], *, max_part: int) -> str:
    """A sample on one line, what carries loss in double brackets.

    Args:
        max_part: characters of each segment; its middle is left out beyond.
    """
    parts = []
    for has_loss, stretch in groupby(segments, key=lambda segment: segment.weight > 0):
        text = "".join(write_part(segment.text, max_part) for segment in stretch)
        parts.append(f"[[{text}]]" if has_loss else text)
    return "".join(parts)
