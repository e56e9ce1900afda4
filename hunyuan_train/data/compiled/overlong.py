"""Samples longer than `max_seq_length`: left out, or shortened by their oldest turns.

Nothing is ever cut inside a message, and an answer that does not fit alone is left out.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hunyuan_train.data.findings import Action, Finding
from hunyuan_train.data.rendering.encode import EncodedChunk, encode_renderings, join_chunks
from hunyuan_train.families.grammar.dialogue import Dialogue
from hunyuan_train.families.grammar.segments import Rendering, Target
from hunyuan_train.families.grammar.tokenizer import Tokenizer


class LongSample(NamedTuple):
    """A sample that did not fit."""

    record: int  # number of its dialogue in the chunk
    num_tokens: int
    num_turns_dropped: int  # 0 where the sample is left out


def report_long(
    path: str, line: int, long: LongSample, action: Action, max_seq_length: int
) -> Finding:
    """What became of a sample that did not fit, as a finding."""
    reason = f"{long.num_tokens:,} tokens, more than max_seq_length {max_seq_length:,}"
    if long.num_turns_dropped:
        fix = f"its {long.num_turns_dropped} oldest turn(s) left out"
        return Finding(path, line, "overlong", "fix", "messages", reason, fix)
    fix = "raise max_seq_length, or set overlong to drop or drop_turns"
    return Finding(path, line, "overlong", action, "messages", reason, fix)


def fit_samples(
    encoded: EncodedChunk,
    dialogues: Sequence[Dialogue],
    renderings: Sequence[Rendering],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    history: str,
    can_drop_turns: bool,
) -> tuple[EncodedChunk, list[LongSample]]:
    """The samples that fit, and what became of the others.

    Tokens of samples left out stay in the chunk; no sample refers to them.
    """
    lengths = encoded.sample_lengths()
    is_long = lengths > max_seq_length
    if not is_long.any():
        return encoded, []
    samples = encoded.samples
    fitted = replace(encoded, samples=samples[~is_long])
    long_samples = []
    for sample in np.flatnonzero(is_long).tolist():
        record = int(samples["record"][sample])
        target = renderings[record].targets[sample - np.searchsorted(samples["record"], record)]
        shorter, num_dropped = None, 0
        if can_drop_turns:
            shorter, num_dropped = _drop_turns(
                dialogues[record], target, tokenizer, max_seq_length=max_seq_length, history=history
            )
        if shorter is not None:
            shorter.samples["record"] = record
            fitted = join_chunks(fitted, shorter)
        long_samples.append(LongSample(record, int(lengths[sample]), num_dropped))
    return fitted, long_samples


def _drop_turns(
    dialogue: Dialogue,
    target: Target,
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    history: str,
) -> tuple[EncodedChunk | None, int]:
    """The sample without its oldest turns, as few as make it fit; None if the last does not."""

    def encode_without(num_turns: int) -> EncodedChunk:
        shorter = _leave_out(dialogue, target, starts[num_turns])
        rendering = tokenizer.grammar.render(shorter, history=history)
        return encode_renderings([rendering], tokenizer)

    def fits(num_turns: int) -> bool:
        return bool(encode_without(num_turns).sample_lengths()[0] <= max_seq_length)

    end = len(dialogue.messages) if target.message is None else target.message + 1
    starts = [
        index for index, message in enumerate(dialogue.messages[:end]) if message.role == "user"
    ]
    choices = range(1, len(starts))  # the last turn stays
    best = bisect_left(choices, True, key=fits)
    shorter = encode_without(choices[best]) if best < len(choices) else None
    if shorter is None or not shorter.samples["num_labels"][0]:  # what carried loss is gone
        return None, 0
    return shorter, choices[best]


def _leave_out(dialogue: Dialogue, target: Target, start: int) -> Dialogue:
    """The dialogue from message `start` on, its system message kept, only the target trained."""
    head = [message for message in dialogue.messages[:1] if message.role == "system"]
    if target.message is None:
        return replace(dialogue, messages=head + dialogue.messages[start:])
    history = [
        replace(message, is_trained=False) for message in dialogue.messages[start : target.message]
    ]
    return replace(dialogue, messages=[*head, *history, dialogue.messages[target.message]])


def leave_out_turns(dialogue: Dialogue, num_turns: int) -> Dialogue:
    """The dialogue without its oldest turns, its system message kept."""
    starts = list_turns(dialogue)
    head = [message for message in dialogue.messages[:1] if message.role == "system"]
    return replace(dialogue, messages=head + dialogue.messages[starts[num_turns] :])


def list_turns(dialogue: Dialogue) -> list[int]:
    """Where each turn begins: the places of the questions."""
    return [index for index, one in enumerate(dialogue.messages) if one.role == "user"]
