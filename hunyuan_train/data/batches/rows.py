"""The rows of an epoch: which samples each holds, for any few of them without the rest.

Rows of several samples are laid once. Where that takes more than a moment they are kept on the
disk, beside the data set, and mapped by every rank and every later start. Rows of one sample need
no laying.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from hunyuan_train.data.batches.order import LengthGroups, Order, UnitOrder
from hunyuan_train.data.batches.packing import PackedWindow, Window, pack_windows
from hunyuan_train.data.compiled.cache import lock_out
from hunyuan_train.data.compiled.memos import read_memo, write_memo
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.shuffle import Integers, shuffle
from hunyuan_train.progress import show_progress
from hunyuan_train.whole_file import open_whole

logger = logging.getLogger(__name__)

_SAMPLES, _BOUNDS = np.dtype("<u4"), np.dtype("<i8")  # a data set has less than 2^32 samples
_BLOCK_BYTES = 1 << 22
# Samples packed together: enough that rows come out full, few enough that samples of all lengths
# meet in every part of an epoch.
WINDOW = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """R rows over an order of samples: row r holds `samples[bounds[r] : bounds[r + 1]]`.

    Of pairs, `samples` are their numbers.
    """

    samples: Integers | npt.NDArray[np.uint32]  # the latter of rows that lie on the disk
    bounds: Integers  # [R + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Integers:
        return self.samples[self.bounds[row] : self.bounds[row + 1]].astype(np.int64)


class RowTable(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def take(self, numbers: Integers) -> list[Integers]:
        """The samples of some rows."""
        ...

    def order(self, generator: np.random.Generator) -> Order:
        """In which an epoch shows them."""
        ...


class PackedRows:
    """Rows of several samples, shuffled."""

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Integers) -> list[Integers]:
        """The samples of some rows."""
        return [self.dataset.samples_of(self.rows[number]) for number in numbers.tolist()]

    def order(self, generator: np.random.Generator) -> Order:
        """In which an epoch shows them."""
        return shuffle(len(self), generator)


class OrderedRows:
    """Rows of one sample or pair, in groups of similar length."""

    def __init__(self, dataset: Dataset, units: UnitOrder) -> None:
        self.dataset = dataset
        self.units = units

    def __len__(self) -> int:
        return len(self.units)

    def take(self, numbers: Integers) -> list[Integers]:
        """The samples of some rows."""
        samples = self.dataset.samples_of(self.units.take(numbers))
        return list(samples.reshape(-1, self.dataset.unit_size))

    def order(self, generator: np.random.Generator) -> Order:
        """In which an epoch shows them."""

        def measure(rows: Integers) -> Integers:
            return self.dataset.unit_lengths(self.units.take(rows))

        return LengthGroups(len(self), measure, generator)


def lay_rows(dataset: Dataset, units: UnitOrder, *, seed: int) -> Rows:
    """Pack an epoch's samples, or open what a process before has packed.

    Args:
        dataset: whose samples they are.
        units: the order in which they are packed.
        seed: that the order was drawn with.
    """
    if len(units) <= WINDOW or dataset.folder is None:
        return join_windows(_pack(dataset, units))
    subject = [dataset.folder.name, dataset.fingerprint, seed]
    name = hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:32]
    path = dataset.folder.with_name(f"{name}.rows")
    try:
        rows = _open_rows(path, subject)
        if rows is None:
            rows = _keep_rows(path, subject, _show(_pack(dataset, units), len(units)))
    except OSError as error:
        logger.warning("%s cannot be kept (%s): rows are laid in memory", path, error.strerror)
        rows = join_windows(_pack(dataset, units))
    return rows


def pack_rows(lengths: Integers, order: Integers, *, max_length: int) -> Rows:
    """Pack samples, in memory; see `pack_windows`.

    Args:
        lengths: [S], none above `max_length`.
        order: samples to pack, in random order; one may occur several times.
        max_length: of a row.
    """
    parts = (order[start : start + WINDOW] for start in range(0, len(order), WINDOW))
    return join_windows(pack_windows((Window(part, lengths[part]) for part in parts), max_length))


def single_rows(order: Integers) -> Rows:
    """One sample a row."""
    return Rows(order, np.arange(len(order) + 1))


def join_windows(windows: Iterable[PackedWindow]) -> Rows:
    """The rows of all windows, in memory."""
    samples, sizes = zip(*windows, strict=True)
    return Rows(np.concatenate(samples), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def measure_fill(lengths: Integers, rows: Rows, max_length: int) -> float:
    """Share of the rows' room that holds tokens."""
    return float(lengths[rows.samples].sum()) / (len(rows) * max_length)


def _keep_rows(path: Path, subject: object, windows: Iterator[PackedWindow]) -> Rows:
    """Write rows, unless another process has just done it, and map them."""
    with lock_out(path):
        if (rows := _open_rows(path, subject)) is None:
            _write_rows(path, subject, windows)
            rows = _open_rows(path, subject)
    if rows is None:
        raise OSError(errno.EIO, "it is damaged as soon as it is written", str(path))
    return rows


def _pack(dataset: Dataset, units: UnitOrder) -> Iterator[PackedWindow]:
    starts = range(0, len(units), WINDOW)
    parts = (units.take(np.arange(start, min(start + WINDOW, len(units)))) for start in starts)
    windows = (Window(part, dataset.unit_lengths(part)) for part in parts)
    return pack_windows(windows, dataset.max_seq_length)


def _show(windows: Iterator[PackedWindow], num_units: int) -> Iterator[PackedWindow]:
    with show_progress("packing", num_units) as advance:
        for window in windows:
            yield window
            advance(len(window.samples))


def _write_rows(path: Path, subject: object, windows: Iterator[PackedWindow]) -> None:
    """Samples in row order, and behind them where rows begin; a memo beside it vouches for both."""
    digest, sizes = xxhash.xxh3_128(), [np.zeros(1, np.int64)]
    with open_whole(path, is_ours=True) as file:
        for window in windows:
            samples = window.samples.astype(_SAMPLES)
            digest.update(samples.data)
            file.write(samples.data)
            sizes.append(window.sizes)
        bounds = np.cumsum(np.concatenate(sizes)).astype(_BOUNDS)
        digest.update(bounds.data)
        file.write(bounds.data)
    content = {"bounds": len(bounds), "samples": int(bounds[-1]), "xxh3_128": digest.hexdigest()}
    with open_whole(_memo_of(path), is_ours=True) as file:
        file.write(write_memo(subject, content).encode())


def _open_rows(path: Path, subject: object) -> Rows | None:
    """Map rows that are on the disk; None where they are not there or not what was written."""
    memo: dict[str, Any] = read_memo(_memo_of(path), subject) or {}
    if not memo or not path.exists() or _sum_file(path) != memo["xxh3_128"]:
        return None
    samples = np.memmap(path, _SAMPLES, mode="r", shape=memo["samples"])
    bounds = np.memmap(path, _BOUNDS, mode="r", offset=samples.nbytes, shape=memo["bounds"])
    return Rows(samples, bounds)


def _memo_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sum_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
