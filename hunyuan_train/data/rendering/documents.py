"""Plain text beside dialogues: what a document is rendered to, and how a long one becomes samples.

A document ends in the token that closes an answer: `<|eos|>` of A13B, which is the end-of-text
token that its tokenizer names. Every token behind the first is learned; the first has none before
it to be told from, because attention never looks into another document.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hunyuan_train.data.dataset import sample_lengths
from hunyuan_train.data.rendering.encode import EncodedChunk
from hunyuan_train.families.grammar.dialogue import DOCUMENT, MODES, Dialogue
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.segments import SPAN_TEXT, Rendering, Segment, Target


def render_record(
    dialogue: Dialogue, grammar: Grammar, *, history: str = "strip", loss: str = "all"
) -> Rendering:
    """The samples of a record, be it a dialogue (see `Render`) or a document."""
    if not dialogue.is_document:
        return grammar.render(dialogue, history=history, loss=loss)
    text = Segment(dialogue.messages[0].content, DOCUMENT, SPAN_TEXT, 1.0)
    end = Segment(grammar.controls.end, DOCUMENT, SPAN_TEXT, 1.0, is_special=True)
    return Rendering([], [Target(0, [text, end], "text")])


def render_records(
    dialogues: Sequence[Dialogue], grammar: Grammar, *, history: str
) -> list[Rendering]:
    """`render_record` of many."""
    return [render_record(dialogue, grammar, history=history) for dialogue in dialogues]


def split_documents(encoded: EncodedChunk, *, max_length: int) -> EncodedChunk:
    """The chunk with documents in pieces of at most `max_length` tokens, in their order.

    A piece begins with the last token of the one before it, without loss, so that no token goes
    unlearned where a document is cut. A document that fits is one piece.

    Args:
        encoded: samples of documents are whole in it.
        max_length: 2 or more; with less, no token would have another one before it.
    """
    is_document = encoded.samples["mode"] == MODES.index("text")
    if not is_document.any() or max_length < 2:
        return encoded
    lengths = sample_lengths(encoded.samples)
    step = max_length - 1  # tokens of a piece that are learned
    num_pieces = np.where(is_document, np.maximum(-(-(lengths - 1) // step), 1), 1)
    pieces = np.repeat(encoded.samples, num_pieces)
    firsts = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    offsets = (np.arange(len(pieces)) - firsts) * step
    left = np.repeat(lengths, num_pieces) - 1 - offsets
    chosen = np.repeat(is_document, num_pieces)
    starts = pieces["target_start"] + offsets
    learned = np.minimum(left, step)
    for name, values in {
        "history_start": starts,
        "history_length": np.ones_like(starts),
        "target_start": starts + 1,
        "target_length": learned,
        "num_labels": learned,
    }.items():
        pieces[name][chosen] = values[chosen]
    return replace(encoded, samples=pieces)
