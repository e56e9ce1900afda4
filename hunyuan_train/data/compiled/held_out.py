"""Which questions are held out of the training data for evaluation, where a share of it is.

A question is held out by its hash, so that neither the order of a file nor its growth moves one to
the other side. A share of few dialogues may be less than one; then it is one.
"""

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from hunyuan_train.data.compiled.compile import CompileSettings, compile_chunk
from hunyuan_train.data.reading.readers import read_chunks
from hunyuan_train.data.reading.sources import Source
from hunyuan_train.families.grammar.tokenizer import Tokenizer

_HASH_RANGE = 2**64


def choose_hash_bound(
    sources: Sequence[Source],
    hashes: Sequence[str],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    *,
    share: float,
) -> int | None:
    """The hash below which a question is held out; each side then has a sample.

    Of a large data set the first records decide; all are read only where one side stays empty.

    Args:
        sources: the training data.
        hashes: of the content of each.
        settings: how it is read, not yet split.
        tokenizer: of the model.
        share: of the questions, above 0.

    Returns:
        None where the samples have one question only, so that nothing can be held out.
    """
    bound = int(share * _HASH_RANGE)
    lowest, highest = _HASH_RANGE, -1
    for source, content in zip(sources, hashes, strict=True):
        for chunk in read_chunks(source.path, expected_hash=content):
            compiled = compile_chunk(chunk, settings, tokenizer)
            used = np.unique(compiled.encoded.samples["record"])
            questions = compiled.question_hashes[used]
            if len(questions):
                lowest = min(lowest, int(questions.min()))
                highest = max(highest, int(questions.max()))
            if lowest < bound <= highest:
                return bound
    if highest < 0:
        return bound  # not one sample: reading says why
    if lowest == highest:
        return None
    return lowest + 1 if bound <= lowest else highest


def is_bound(value: object) -> TypeGuard[int | None]:
    """Whether a value can be what `choose_hash_bound` returns."""
    return value is None or (type(value) is int and 0 <= value <= _HASH_RANGE)
