"""What the self-test trains on: a tiny model of the real architecture, and four awkward steps.

Each step has as many micro-batches as the largest number of ranks needs, always the same ones, so
that every way of dealing them out must give the same training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch, join_samples
from hunyuan_train.data.dataset import CHOSEN, REJECTED, SampleTokens
from hunyuan_train.data.records.record import RecordKind
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import SPAN_ANSWER, SPAN_MARKER, SPAN_NONE, SPAN_THINK
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.weights import SeededWeights

# More experts than the third step has places for, so that some get no token on any rank.
SHAPE = replace(
    PRESETS["tiny"],
    vocab_size=320,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    head_dim=16,
    num_experts=32,
    moe_topk=2,
)
DENSE = replace(SHAPE, family=PRESETS["tiny-dense"].family, num_experts=0, moe_topk=0)
# Every size is another one, and the bias of the routers decides some of their choices.
HY_V3 = replace(
    PRESETS["tiny-hy3"],
    vocab_size=320,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    head_dim=16,
    num_experts=32,
    moe_topk=2,
    moe_intermediate_size=32,
    shared_intermediate_size=64,
)


@dataclass(frozen=True, slots=True)
class TestWeights(SeededWeights):
    """Random weights in which routers have biases that differ."""

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor."""
        if not tensor.name.endswith("expert_bias"):
            return super(TestWeights, self).read(tensor, start, stop)
        return torch.linspace(-0.1, 0.1, tensor.numel)[torch.arange(start, stop) * 7 % tensor.numel]


WEIGHTS = TestWeights(seed=1, standard_deviation=0.08)
TRAINED_ADAPTERS = SeededWeights(seed=2, standard_deviation=0.1)  # that a run may start from
PAD_ID = 0
DEFAULT_BATCHES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One document and the number of its thinking mode."""

    tokens: SampleTokens
    mode: int


Step = list[list[Sample]]  # micro-batches of one optimizer step, all ranks'; an empty one is filled


def make_steps(num_batches: int) -> list[Step]:
    """The four steps, of `num_batches` micro-batches each."""
    half = (num_batches + 1) // 2
    random = np.random.default_rng(0)
    uneven = [
        _samples(random, (19, 31, 42)) if index < half else _samples(random, (2, 5, 3))
        for index in range(num_batches)
    ]
    half_without_labels = [
        _samples(random, (12, 7, 23), has_labels=index < half) for index in range(num_batches)
    ]
    short: Step = [_samples(random, (3,)), *([] for _ in range(num_batches - 1))]
    even = [_samples(random, (17, 9, 14)) for _ in range(num_batches)]
    return [uneven, half_without_labels, short, even]


def _samples(
    random: np.random.Generator, lengths: Sequence[int], *, has_labels: bool = True
) -> list[Sample]:
    return [_sample(random, length, has_labels=has_labels) for length in lengths]


def _sample(random: np.random.Generator, length: int, *, has_labels: bool) -> Sample:
    """A prompt of a third, then thoughts, answer and markers; some tokens weigh half."""
    kinds = [SPAN_NONE, SPAN_THINK, SPAN_ANSWER, SPAN_MARKER]
    spans = np.sort(random.permutation(np.resize(kinds, length))).astype(np.uint8)
    if not has_labels:
        spans[:] = SPAN_NONE
    weights = np.where(spans != SPAN_NONE, random.choice([0.5, 1.0], length), 0.0)
    tokens = random.integers(0, SHAPE.vocab_size, length).astype(np.uint32)
    mode = random.choice([MODES.index("fast"), MODES.index("slow")])
    return Sample(SampleTokens(tokens, spans, weights.astype(np.float32)), int(mode))


def list_answers(sample: Sample, *, is_paired: bool) -> list[Sample]:
    """A sample as the chosen answer, and, of a pair, another one in its place as the rejected."""
    return [sample, _turn(sample, 1)] if is_paired else [sample]


def list_mismatched(sample: Sample) -> list[Sample]:
    """A sample's prompt with the answer to another one: that it differs is all that matters."""
    return [_turn(sample, 2)]


def _turn(sample: Sample, number: int) -> Sample:
    """The same sample with its tokens moved by some places."""
    tokens = np.roll(sample.tokens.tokens, number)
    return replace(sample, tokens=sample.tokens._replace(tokens=tokens))


def lay_batches(
    micro_batches: Step, *, packing: bool, min_tokens: int = 1, records: RecordKind = "dialogues"
) -> list[Batch]:
    """Micro-batches as the loader makes them: packed, or one sample in each.

    Without packing all micro-batches become as many, because ranks must keep step.

    Args:
        micro_batches: of a step.
        packing: whether samples of a micro-batch share a row.
        min_tokens: ranks that share a row.
        records: what the objective learns from: samples, pairs or judged answers made of them.
    """
    if packing:
        return [_join(samples, min_tokens, records) for samples in micro_batches]
    longest = max(len(samples) for samples in micro_batches)
    return [
        _join(samples[index : index + 1], min_tokens, records)
        for samples in micro_batches
        for index in range(longest)
    ]


def _join(samples: list[Sample], min_tokens: int, records: RecordKind) -> Batch:
    if records == "dialogues":
        return _join_plainly(samples, min_tokens)
    is_paired = records == "pairs"
    answers = [one for sample in samples for one in list_answers(sample, is_paired=is_paired)]
    batch = _join_plainly(answers, min_tokens)
    sides = np.zeros(len(batch.modes), np.uint8)
    sides[: len(answers)] = np.resize([CHOSEN, REJECTED], len(answers))
    others = [one for sample in samples for one in list_mismatched(sample)]
    mismatched = None if is_paired else _join_plainly(others, min_tokens)
    return replace(batch, sides=sides, mismatched=mismatched)


def _join_plainly(samples: list[Sample], min_tokens: int) -> Batch:
    return join_samples(
        [sample.tokens for sample in samples],
        modes=[sample.mode for sample in samples],
        sample_ids=range(len(samples)),
        pad_id=PAD_ID,
        min_tokens=min_tokens,
    )
