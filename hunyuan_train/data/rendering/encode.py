"""Renderings to token ids, loss spans and sample boundaries, a whole chunk in one tokenizer call.

All segments of a chunk are joined to one text in which each control token is its private mark,
tokenized once, and taken apart again by byte offsets. One call per chunk instead of one per segment
makes tokenizing half as fast again, and no search through ids is needed. A token that reaches over
the border of two spans (a full stop with the newline of a tag) belongs to the span of its first
byte.

The door of `rendering`: what a grammar has rendered goes in, tokens come out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.dataset import SAMPLE, SampleTokens, gather_sample, sample_lengths
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import Rendering, Segment
from hunyuan_train.families.grammar.tokenizer import Tokenizer


@dataclass(slots=True)
class EncodedChunk:
    """Tokens of some renderings, T in all, and the samples made of them."""

    tokens: npt.NDArray[np.uint32]  # [T]
    spans: npt.NDArray[np.uint8]  # [T], kind of loss each token carries, 0 for none
    weights: npt.NDArray[np.float32] | None  # [T]; None where every token with loss weighs 1
    samples: npt.NDArray[np.void]  # [S] of SAMPLE; `record` is the number of the rendering
    num_tokens_once: int  # if each dialogue were one sample: the measure of growth
    sides: npt.NDArray[np.uint8] | None = None  # [S], of preferences

    def sample_lengths(self) -> npt.NDArray[np.int64]:
        """[S], tokens of each sample."""
        return sample_lengths(self.samples)

    def sample(self, number: int) -> SampleTokens:
        """The tokens of one sample."""
        return gather_sample(self.samples[number], self.tokens, self.spans, self.weights)

    def all_weights(self) -> npt.NDArray[np.float32]:
        """[T], also where every token with loss weighs 1."""
        return (self.spans != 0).astype(np.float32) if self.weights is None else self.weights


def encode_renderings(renderings: Sequence[Rendering], tokenizer: Tokenizer) -> EncodedChunk:
    """Tokenize the samples of many dialogues at once."""
    segments = list(_walk(renderings))
    tokens, bounds = encode_segments(segments, tokenizer)
    counts = np.diff(bounds)
    spans = np.repeat(np.array([segment.span for segment in segments], np.uint8), counts)
    segment_weights = np.array([segment.weight for segment in segments], np.float32)
    is_plain = np.isin(segment_weights, (0.0, 1.0)).all()
    weights = None if is_plain else np.repeat(segment_weights, counts)
    samples, num_tokens_once = _locate_samples(renderings, bounds, spans)
    return EncodedChunk(tokens, spans, weights, samples, num_tokens_once)


def join_chunks(first: EncodedChunk, second: EncodedChunk) -> EncodedChunk:
    """The tokens of the second behind those of the first, its samples pointing there."""
    samples = second.samples.copy()
    samples["history_start"] += len(first.tokens)
    samples["target_start"] += len(first.tokens)
    weights = None
    if first.weights is not None or second.weights is not None:
        weights = np.concatenate([first.all_weights(), second.all_weights()])
    return EncodedChunk(
        tokens=np.concatenate([first.tokens, second.tokens]),
        spans=np.concatenate([first.spans, second.spans]),
        weights=weights,
        samples=np.concatenate([first.samples, samples]),
        num_tokens_once=first.num_tokens_once,
    )


def encode_segments(
    segments: Sequence[Segment], tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Encode joined segments: their ids, and where each begins among them.

    Returns:
        ids: [tokens], uint32.
        starts: [segments + 1], int64: the first token of each segment, and the end behind the last.
    """
    marks = tokenizer.marks
    texts = [marks[segment.text] if segment.is_special else segment.text for segment in segments]
    if missing := tokenizer.grammar.missing:  # which those who read records have told of
        left_out = dict.fromkeys(map(ord, missing))
        texts = [text.translate(left_out) for text in texts]
    tokens = tokenizer.encode_marked("".join(texts))
    num_special = sum([segment.is_special for segment in segments])
    if np.count_nonzero(tokens >= tokenizer.num_ranks) != num_special:
        tokens = _encode_apart(segments, tokenizer)
    sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
    segment_starts = np.cumsum([0, *sizes])
    token_sizes = tokenizer.token_num_bytes[tokens]
    token_ends = token_sizes.cumsum()
    assert token_sizes.sum() == segment_starts[-1], "tokens spell the text they were made of"
    return tokens, np.searchsorted(token_ends - token_sizes, segment_starts)


def _walk(renderings: Sequence[Rendering]) -> Iterator[Segment]:
    for rendering in renderings:
        yield from rendering.history
        for target in rendering.targets:
            yield from target.segments


def _encode_apart(segments: Sequence[Segment], tokenizer: Tokenizer) -> npt.NDArray[np.uint32]:
    """The slow way, for text that itself holds one of the mark characters."""
    ids: list[int] = []
    run = ""
    for segment in segments:
        if segment.is_special:
            ids += [*tokenizer.encode(run), tokenizer.special_id(segment.text)]
            run = ""
        else:
            run += segment.text
    return np.array(ids + tokenizer.encode(run), np.uint32)


def _locate_samples(
    renderings: Sequence[Rendering],
    bounds: npt.NDArray[np.int64],
    spans: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.void], int]:
    rows = []
    num_tokens_once = 0
    first_segment = 0
    starts = bounds.tolist()
    for record, rendering in enumerate(renderings):
        history_start = starts[first_segment]
        segment = first_segment + len(rendering.history)
        num_tokens_once += starts[segment] - history_start
        for index, target in enumerate(rendering.targets):
            end = segment + len(target.segments)
            history_end = first_segment + target.num_history
            length = starts[end] - starts[segment]
            num_tokens_once += length
            if index + 1 < len(rendering.targets):  # its bare form is in the history too
                num_tokens_once -= starts[history_end + target.num_bare] - starts[history_end]
            rows.append(
                (
                    record,
                    history_start,
                    starts[history_end] - history_start,
                    starts[segment],
                    length,
                    0,
                    MODES.index(target.mode),
                )
            )
            segment = end
        first_segment = segment
    samples = np.array(rows, SAMPLE)
    labels_before = np.concatenate([[0], np.cumsum(spans != 0)])
    ends = samples["target_start"] + samples["target_length"]
    samples["num_labels"] = labels_before[ends] - labels_before[samples["target_start"]]
    return samples, num_tokens_once
