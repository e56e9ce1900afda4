"""Batches for the training loop, each a pure function of a position: nothing to save but that.

A batch is one flat run of samples without padding. Rows of an epoch are numbered; a step takes the
next rows of all ranks and micro-batches, whoever computes which. Ranks may share rows: each of them
then keeps a part of the tokens, cut from the whole row, whose labels are those of the whole row.

The door of `batches`: a `Dataset` goes in, the batches of each step come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.batches.order import Order, order_units
from hunyuan_train.data.batches.rows import (
    OrderedRows,
    PackedRows,
    RowTable,
    lay_rows,
    pack_rows,
    single_rows,
)
from hunyuan_train.data.dataset import Dataset, SampleTokens
from hunyuan_train.data.shuffle import Integers

_SAMPLES_MAPPED = 16  # whose pages count as a rank's memory at a time: 6 MB of each at most

IGNORED = -100  # label of a position that carries no loss


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """S samples end to end, T tokens. A label is the token that follows in the same sample.

    Where ranks share the row, T are this rank's tokens, and samples are those of the whole row.
    """

    input_ids: npt.NDArray[np.int64]  # [T]
    position_ids: npt.NDArray[np.int64]  # [T], from 0 in each sample
    labels: npt.NDArray[np.int64]  # [T], -100 where there is no loss and at each sample's end
    loss_weights: npt.NDArray[np.float32]  # [T], 0 where the label is -100
    spans: npt.NDArray[np.uint8]  # [T], of the label: 0 none, 1 think, 2 answer, 3 marker
    modes: npt.NDArray[np.uint8]  # [S], 0 plain, 1 fast, 2 slow
    cu_seqlens: npt.NDArray[np.int32]  # [S + 1], where samples start, and the end
    sample_ids: npt.NDArray[np.int64]  # [S], -1 of what only keeps ranks in step
    part_lengths: tuple[int, ...] = ()  # tokens of each rank that shares the row; none: not shared
    first_token: int = 0  # place of the first of the T tokens in the row
    # Of preferences: CHOSEN, REJECTED or 0 for what is neither, [S]; pairs lie side by side.
    sides: npt.NDArray[np.uint8] | None = None
    reference_logps: npt.NDArray[np.float64] | None = None  # [S], where a reference has judged them
    mismatched: "Batch | None" = None  # of judged answers: each prompt with another one's answer
    source: str = ""  # of held-out data in several files: the one that all samples are from
    of_step: float = 0.0  # a number of the whole step that the objective needs of every batch


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShard:
    """Which rows a rank reads, and which part of each."""

    rows: int  # in a micro-step, of each group that shares its rows
    num_ranks: int
    rank: int
    sequence_size: int = 1  # consecutive ranks of a group; 1: every rank has rows of its own

    @property
    def num_groups(self) -> int:
        """Groups with rows of their own."""
        return self.num_ranks // self.sequence_size

    @property
    def group(self) -> int:
        """This rank's group."""
        return self.rank // self.sequence_size

    @property
    def sequence_rank(self) -> int:
        """This rank's place in its group."""
        return self.rank % self.sequence_size

    def rows_after(self, start: int) -> slice:
        """This rank's rows of those that all ranks take from `start` on."""
        first = start + self.group * self.rows
        return slice(first, first + self.rows)


@dataclass(frozen=True, slots=True)
class Position:
    """A row of an epoch: where a step starts."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class StepContent:
    """What one optimizer step reads, of all ranks."""

    num_rows: int
    num_tokens: int
    sum_of_squares: int  # of the samples' lengths
    samples_by_source: dict[str, int]
    tokens_by_source: dict[str, int]


class BatchSampler:
    """Which rows each step of each epoch trains on, for one rank."""

    def __init__(
        self,
        dataset: Dataset,
        shard: DataShard,
        *,
        accumulation_steps: int,
        seed: int,
        packing: bool,
    ) -> None:
        self.dataset = dataset
        self.shard = shard
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        units = order_units(dataset, _generator(dataset, seed, stream=0))
        self.rows: RowTable
        if packing:
            self.rows = PackedRows(dataset, lay_rows(dataset, units, seed=seed))
        else:
            self.rows = OrderedRows(dataset, units)
        self._order: tuple[int, Order] | None = None  # of the epoch used last
        self._source_ends = np.array([one.stop for one in dataset.units_by_source()])

    @property
    def rows_per_step(self) -> int:
        """Rows of all ranks in one optimizer step."""
        return self.shard.rows * self.shard.num_groups * self.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, a last one with fewer rows included."""
        return -(-len(self.rows) // self.rows_per_step)

    def step_batches(self, position: Position) -> tuple[list[Batch], Position]:
        """This rank's micro-batches of the step that starts there, and where the next one starts.

        Each rank gets `accumulation_steps` batches, in a last step that is short of rows too.
        """
        rows_per_micro_batch = self.shard.rows * self.shard.num_groups
        batches = []
        for step in range(self.accumulation_steps):
            mine = self.shard.rows_after(position.row + step * rows_per_micro_batch)
            rows = self._rows_at(position.epoch, mine)
            batches.append(_gather(self.dataset, rows, self.shard))
        end = position.row + self.rows_per_step
        is_last = end >= len(self.rows)
        following = Position(position.epoch + 1, 0) if is_last else Position(position.epoch, end)
        return batches, following

    def step_content(self, position: Position) -> StepContent:
        """What all ranks together read in the step that starts there."""
        step = slice(position.row, position.row + self.rows_per_step)
        rows = self._rows_at(position.epoch, step)
        samples = np.concatenate(rows)
        lengths = self.dataset.lengths_of(samples)
        units = samples // self.dataset.unit_size
        sources = np.searchsorted(self._source_ends, units, side="right")
        names = [Path(path).name for path in self.dataset.paths]
        counts = np.bincount(sources, minlength=len(names))
        tokens = np.bincount(sources, weights=lengths, minlength=len(names))
        return StepContent(
            num_rows=len(rows),
            num_tokens=int(lengths.sum()),
            sum_of_squares=int((lengths**2).sum()),
            samples_by_source=_add_up(names, counts.tolist()),
            tokens_by_source=_add_up(names, tokens.tolist()),
        )

    def origins(self, batches: Sequence[Batch]) -> list[str]:
        """The `file:line` of every sample in some batches."""
        ids = [sample for batch in batches for sample in batch.sample_ids.tolist() if sample >= 0]
        return [self.dataset.origin(sample) for sample in ids]

    def _rows_at(self, epoch: int, places: slice) -> list[Integers]:
        """The samples of the rows at some places of an epoch; none behind its end."""
        if self._order is None or self._order[0] != epoch:
            generator = _generator(self.dataset, self.seed, stream=1 + epoch)
            self._order = (epoch, self.rows.order(generator))
        numbers = np.arange(*places.indices(len(self.rows)))
        return self.rows.take(self._order[1].take(numbers))


def _add_up(names: list[str], counts: list[float]) -> dict[str, int]:
    """Counts by name; files of one name in several folders count as one source."""
    sums: dict[str, int] = {}
    for name, count in zip(names, counts, strict=True):
        sums[name] = sums.get(name, 0) + int(count)
    return sums


def eval_batches(
    dataset: Dataset, shard: DataShard, *, packing: bool, units: Integers | None = None
) -> list[Batch]:
    """Samples once, in file order or packed; every rank gets the same number of batches.

    Args:
        dataset: whose samples they are.
        shard: which of them are this rank's.
        packing: whether several share a row.
        units: numbers of pairs or single samples; all, where none are given.
    """
    units = np.arange(dataset.num_units) if units is None else units
    rows = single_rows(units)
    if packing:
        lengths = dataset.unit_lengths(np.arange(dataset.num_units))
        rows = pack_rows(lengths, units, max_length=dataset.max_seq_length)
    laid, numbers = PackedRows(dataset, rows), np.arange(len(rows))
    return [
        _gather(dataset, laid.take(numbers[shard.rows_after(start)]), shard)
        for start in range(0, len(rows), shard.rows * shard.num_groups)
    ]


def eval_by_file(dataset: Dataset, shard: DataShard, *, packing: bool) -> list[Batch]:
    """`eval_batches` of one file after the other, so that each has a loss of its own.

    Files of one name in several folders count as one. Of one file, the batches name no source.
    """
    units_of: dict[str, Integers] = {}
    for path, units in zip(dataset.paths, dataset.units_by_source(), strict=True):
        found, name = np.arange(units.start, units.stop), Path(path).name
        if len(found):
            units_of[name] = np.concatenate([units_of.get(name, found[:0]), found])
    if len(units_of) < 2:
        return eval_batches(dataset, shard, packing=packing)
    return [
        replace(batch, source=name)
        for name, units in units_of.items()
        for batch in eval_batches(dataset, shard, packing=packing, units=units)
    ]


def _gather(dataset: Dataset, rows: Sequence[Integers], shard: DataShard) -> Batch:
    batch = make_batch(dataset, rows, min_tokens=shard.sequence_size)
    if dataset.sides is not None and not dataset.is_paired:
        batch = replace(batch, mismatched=_make_mismatched(dataset, batch, shard))
    return cut_batch(batch, shard.sequence_rank, shard.sequence_size)


def _make_mismatched(dataset: Dataset, batch: Batch, shard: DataShard) -> Batch:
    """The batch in which each prompt has the answer to another one."""
    ids = [sample for sample in batch.sample_ids.tolist() if sample >= 0]
    other = join_samples(
        [dataset.mismatched(sample) for sample in ids],
        modes=dataset.samples["mode"][ids].tolist(),
        sample_ids=ids,
        pad_id=dataset.pad_id,
        min_tokens=shard.sequence_size,
    )
    if dataset.mismatched_logps is not None:
        logps = dataset.mismatched_logps[ids]
        other = replace(other, reference_logps=_for_all(other, logps))
    return other


def _for_all(batch: Batch, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[S], with a 0 for a filler behind the samples that have a value."""
    return np.pad(values, (0, len(batch.sample_ids) - len(values)))


def make_batch(dataset: Dataset, rows: Sequence[Integers], *, min_tokens: int = 1) -> Batch:
    """The samples of some rows end to end; see `join_samples`."""
    ids = [sample for row in rows for sample in row.tolist()]
    samples, modes = [], []
    for number, sample in enumerate(ids):
        if number % _SAMPLES_MAPPED == 0:
            dataset.let_go()
        samples.append(dataset.sample(sample))
        modes.append(int(dataset.samples[sample]["mode"]))
    batch = join_samples(
        samples,
        modes=modes,
        sample_ids=ids,
        pad_id=dataset.pad_id,
        min_tokens=min_tokens,
    )
    if dataset.sides is not None:
        batch = replace(batch, sides=_for_all(batch, dataset.sides[ids]))
    if dataset.reference_logps is not None:
        logps = _for_all(batch, dataset.reference_logps[ids])
        batch = replace(batch, reference_logps=logps)
    return batch


def cut_batch(batch: Batch, part: int, num_parts: int) -> Batch:
    """One rank's part of a row that several share: as many tokens as any other's, or one more.

    Args:
        batch: the whole row, with as many tokens as there are parts or more.
        part: which one.
        num_parts: ranks that share the row; 1 leaves it whole.
    """
    if num_parts == 1:
        return batch
    num_tokens = len(batch.input_ids)
    assert num_tokens >= num_parts, f"a row of {num_tokens} tokens has no {num_parts} parts"
    bounds = [index * num_tokens // num_parts for index in range(num_parts + 1)]
    mine = slice(bounds[part], bounds[part + 1])
    return replace(
        batch,
        input_ids=batch.input_ids[mine],
        position_ids=batch.position_ids[mine],
        labels=batch.labels[mine],
        loss_weights=batch.loss_weights[mine],
        spans=batch.spans[mine],
        part_lengths=tuple(np.diff(bounds).tolist()),
        first_token=bounds[part],
        mismatched=batch.mismatched and cut_batch(batch.mismatched, part, num_parts),
    )


def join_samples(
    samples: Sequence[SampleTokens],
    *,
    modes: Sequence[int],
    sample_ids: Sequence[int],
    pad_id: int = 0,
    min_tokens: int = 1,
) -> Batch:
    """Samples end to end, as one batch.

    Args:
        samples: none is what a rank without data trains on, to keep step with the others.
        modes: of each sample, by number.
        sample_ids: of each sample.
        pad_id: token of a last document without loss that is put where there are too few tokens.
        min_tokens: ranks that share the row: none can do without a token.
    """
    num_missing = min_tokens - sum(len(sample.tokens) for sample in samples)
    if num_missing > 0:
        samples, modes = [*samples, _filler(pad_id, num_missing)], [*modes, 0]
        sample_ids = [*sample_ids, -1]
    lengths = [len(sample.tokens) for sample in samples]
    following = [_shift(sample) for sample in samples]
    return Batch(
        input_ids=np.concatenate([sample.tokens for sample in samples]).astype(np.int64),
        position_ids=np.concatenate([np.arange(length) for length in lengths]),
        labels=np.concatenate([labels for labels, _, _ in following]),
        loss_weights=np.concatenate([weights for _, weights, _ in following]),
        spans=np.concatenate([spans for _, _, spans in following]),
        modes=np.array(modes, np.uint8),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        sample_ids=np.array(sample_ids, np.int64),
    )


def _filler(pad_id: int, num_tokens: int) -> SampleTokens:
    no_loss = np.zeros(num_tokens, np.uint8)
    tokens = np.full(num_tokens, pad_id, np.uint32)
    return SampleTokens(tokens, no_loss, no_loss.astype(np.float32))


def _shift(
    sample: SampleTokens,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Labels, their weights and spans, each [T]: of the next token, none behind the last."""
    spans = np.append(sample.spans[1:], np.uint8(0))
    labels = np.append(sample.tokens[1:].astype(np.int64), IGNORED)
    labels[spans == 0] = IGNORED
    return labels, np.append(sample.weights[1:], np.float32(0)), spans


def _generator(dataset: Dataset, seed: int, *, stream: int) -> np.random.Generator:
    """Random numbers that depend on the data and the seed, the same on every rank."""
    entropy = int(dataset.fingerprint[:16], 16)
    return np.random.default_rng([entropy, seed, stream])
