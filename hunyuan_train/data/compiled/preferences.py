"""Preferences to samples: one for each side, the sides of a pair one behind the other.

A pair lies in one row, so that its two answers meet in one micro-batch: together they may have no
more tokens than a row. What is left out or shortened is so on both sides.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hunyuan_train.data.compiled.overlong import LongSample, leave_out_turns, list_turns
from hunyuan_train.data.dataset import CHOSEN
from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.preferences import Side
from hunyuan_train.data.rendering.encode import EncodedChunk, encode_renderings, join_chunks
from hunyuan_train.families.grammar.tokenizer import Tokenizer

SEVERAL_ANSWERS = Problem(
    "pair_answers",
    "messages",
    "a side has several answers, which history strip makes samples of their own",
    "set history to keep, so that they stand in one sample",
)


class Unfit(NamedTuple):
    """A record that makes no samples."""

    record: int  # its number in the chunk
    problem: Problem


def encode_preferences(
    records: Sequence[Sequence[Side]],
    tokenizer: Tokenizer,
    counts: Counter[str],
    *,
    max_seq_length: int,
    history: str,
    can_drop_turns: bool,
) -> tuple[EncodedChunk, list[LongSample | Unfit]]:
    """Tokenize the sides of some records, whole records or none of them.

    Args:
        records: the sides of each.
        tokenizer: of the model.
        counts: of tokens are added.
        max_seq_length: tokens that the sides of a record have together at most.
        history: how earlier answers stand in a prompt.
        can_drop_turns: whether the oldest turns of long records may be left out.
    """
    encoded = _encode(records, tokenizer, history)
    counts["tokens_laid_out"] = int(encoded.sample_lengths().sum())
    counts["tokens_once"] = encoded.num_tokens_once
    owners = np.repeat(np.arange(len(records)), [len(sides) for sides in records])
    encoded.samples["record"] = owners[encoded.samples["record"]]
    num_samples = np.bincount(encoded.samples["record"], minlength=len(records)).tolist()
    num_tokens = np.bincount(
        encoded.samples["record"], weights=encoded.sample_lengths(), minlength=len(records)
    )
    reports: list[LongSample | Unfit] = []
    for number, sides in enumerate(records):
        if num_samples[number] != len(sides):
            reports.append(Unfit(number, SEVERAL_ANSWERS))
        elif num_tokens[number] > max_seq_length:
            shorter, num_dropped = None, 0
            if can_drop_turns:
                shorter, num_dropped = _drop_turns(sides, tokenizer, history, max_seq_length)
            reports.append(LongSample(number, int(num_tokens[number]), num_dropped))
            if shorter:
                encoded = _replace_samples(encoded, shorter, number)
                continue
        else:
            continue
        encoded = replace(encoded, samples=encoded.samples[encoded.samples["record"] != number])
    used = encoded.samples["record"].tolist()
    verdicts = [side.verdict for number in dict.fromkeys(used) for side in records[number]]
    return replace(encoded, sides=np.array(verdicts, np.uint8)), reports


def count_pairs(encoded: EncodedChunk) -> Counter[str]:
    """Pairs, and those in which one side has more to learn than the other."""
    chosen, rejected = encoded.samples["num_labels"].reshape(-1, 2).T
    return Counter(
        pairs=len(chosen),
        chosen_longer=int((chosen > rejected).sum()),
        rejected_longer=int((chosen < rejected).sum()),
    )


def count_labels(encoded: EncodedChunk) -> Counter[str]:
    """Answers by their label."""
    num_good = int(np.count_nonzero(encoded.sides == CHOSEN))
    return Counter(good=num_good, bad=len(encoded.samples) - num_good)


def _encode(records: Sequence[Sequence[Side]], tokenizer: Tokenizer, history: str) -> EncodedChunk:
    """One sample for each trained answer of each side; of one side, they follow each other."""
    render = tokenizer.grammar.render
    sides = [side for sides in records for side in sides]
    return encode_renderings([render(side.dialogue, history=history) for side in sides], tokenizer)


def _drop_turns(
    sides: Sequence[Side], tokenizer: Tokenizer, history: str, max_seq_length: int
) -> tuple[EncodedChunk | None, int]:
    """A record without its oldest turns, as few as make it fit; None if the last does not."""

    def encode_without(num_turns: int) -> EncodedChunk:
        shorter = [
            side._replace(dialogue=leave_out_turns(side.dialogue, num_turns)) for side in sides
        ]
        return _encode([shorter], tokenizer, history)

    def fits(num_turns: int) -> bool:
        return bool(encode_without(num_turns).sample_lengths().sum() <= max_seq_length)

    # The last turn stays; all before it is prompt, of which the sides have the same.
    choices = range(1, len(list_turns(sides[0].dialogue)))
    best = bisect_left(choices, True, key=fits)
    return (encode_without(choices[best]), choices[best]) if best < len(choices) else (None, 0)


def _replace_samples(encoded: EncodedChunk, shorter: EncodedChunk, record: int) -> EncodedChunk:
    """Put a record's shorter samples in the place of its long ones."""
    shorter.samples["record"] = record
    kept = replace(encoded, samples=encoded.samples[encoded.samples["record"] != record])
    joined = join_chunks(kept, shorter)
    order = np.argsort(joined.samples["record"], kind="stable")
    return replace(joined, samples=joined.samples[order])
