"""One record as the model is taught it, for the eye: roles, spans, what carries loss, tokens."""

from itertools import islice

import numpy as np
from rich.panel import Panel
from rich.text import Text

from hunyuan_train.data.dataset import SampleTokens
from hunyuan_train.data.rendering.encode import encode_segments
from hunyuan_train.data.rendering.one_line import write_part
from hunyuan_train.families.grammar.segments import (
    SPAN_ANSWER,
    SPAN_MARKER,
    SPAN_TEXT,
    SPAN_THINK,
    Rendering,
    Segment,
)
from hunyuan_train.families.grammar.tokenizer import Tokenizer

# What carries loss is underlined, in the colour of its span; the rest has the colour of its role.
_ROLE_STYLES = {
    "system": "magenta",
    "user": "cyan",
    "tool": "yellow",
    "assistant": "dim",
    "text": "dim",
}
_SPAN_STYLES = {
    SPAN_THINK: "blue underline",
    SPAN_ANSWER: "green underline",
    SPAN_MARKER: "red underline",
    SPAN_TEXT: "green underline",
}
TOKEN_BORDER = "\N{LEFT ONE EIGHTH BLOCK}"


def write_legend() -> Text:
    """What the colours mean."""
    legend = Text("roles ")
    for role, style in _ROLE_STYLES.items():
        legend.append(f"{role} ", style)
    legend.append(" loss ")
    for name, span in (("think", SPAN_THINK), ("answer", SPAN_ANSWER), ("marker", SPAN_MARKER)):
        legend.append(name, _SPAN_STYLES[span]).append(" ")
    return legend


def show_samples(
    rendering: Rendering, tokenizer: Tokenizer | None, *, with_tokens: bool
) -> list[Panel]:
    """Each sample of a dialogue in a frame that says how long it is."""
    panels = []
    for index, target in enumerate(rendering.targets):
        segments = rendering.sample(index)
        title = f"sample {index + 1} of {len(rendering.targets)}, {target.mode}"
        text = Text.assemble(*((segment.text, _style(segment)) for segment in segments))
        if tokenizer is not None:
            tokens, bounds = encode_segments(segments, tokenizer)
            sizes = np.diff(bounds).tolist()
            num_labels = sum(
                size for size, segment in zip(sizes, segments, strict=True) if segment.weight
            )
            num_labels -= segments[0].weight > 0  # nothing comes before a document's first token
            title += f", {len(tokens):,} tokens, {num_labels:,} with loss"
            if with_tokens:
                text = _mark_tokens(segments, sizes, tokens.tolist(), tokenizer)
        panels.append(Panel(text, title=title, title_align="left"))
    return panels


def _mark_tokens(
    segments: list[Segment], sizes: list[int], tokens: list[int], tokenizer: Tokenizer
) -> Text:
    text = Text()
    rest = iter(tokens)
    for segment, size in zip(segments, sizes, strict=True):
        for token in islice(rest, size):
            text.append(write_token(tokenizer.token_bytes(token)), _style(segment))
            text.append(TOKEN_BORDER, "bright_black")
    return text


def write_token(token: bytes) -> str:
    """A token's bytes, those that are no whole character as hexadecimal, newlines visible."""
    return token.decode("utf-8", "backslashreplace").replace("\n", "\\n\n").replace("\t", "\\t")


def _style(segment: Segment) -> str:
    style = _SPAN_STYLES[segment.span] if segment.weight else _ROLE_STYLES[segment.role]
    return f"{style} bold" if segment.is_special else style


def write_sample(sample: SampleTokens, tokenizer: Tokenizer, *, max_part: int) -> str:
    """A compiled sample as one line of text, what carries loss in double brackets.

    Args:
        max_part: characters of each stretch with or without loss; its middle is left out beyond.
    """
    has_loss = sample.spans != 0
    borders = np.flatnonzero(np.diff(has_loss)) + 1
    parts = []
    for tokens, flags in zip(
        np.split(sample.tokens, borders), np.split(has_loss, borders), strict=True
    ):
        text = write_part(tokenizer.decode(tokens.tolist()), max_part)
        parts.append(f"[[{text}]]" if flags[0] else text)
    return "".join(parts)
