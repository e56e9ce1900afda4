"""Samples into rows of `max_seq_length`.

Which samples share a row is a pure function of the data set and the seed, so every rank computes
the same rows, and a run resumes on any number of ranks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.shuffle import Integers

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


class Window(NamedTuple):
    """Samples that are packed together."""

    samples: Integers  # [N], in random order; one may occur several times
    lengths: Integers  # [N]


class PackedWindow(NamedTuple):
    """The same samples in rows."""

    samples: Integers  # [N]
    sizes: Integers  # of each row, in samples


def pack_rows(lengths: Integers, order: Integers, *, max_length: int) -> Rows:
    """Best fit: every row opens with the longest sample left and takes the longest that still fits.

    Args:
        lengths: [S], none above `max_length`.
        order: samples to pack, in random order; one may occur several times.
        max_length: of a row.
    """
    parts = (order[start : start + WINDOW] for start in range(0, len(order), WINDOW))
    return join_windows(pack_windows((Window(part, lengths[part]) for part in parts), max_length))


def pack_windows(windows: Iterable[Window], max_length: int) -> Iterator[PackedWindow]:
    """Windows of samples into rows, one after the other."""
    return (_pack_window(window, max_length) for window in windows)


def join_windows(windows: Iterable[PackedWindow]) -> Rows:
    """The rows of all windows, in memory."""
    samples, sizes = zip(*windows, strict=True)
    return Rows(np.concatenate(samples), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def _pack_window(window: Window, max_length: int) -> PackedWindow:
    """Samples in row order, and the number in each row.

    Samples wait in one pile per length. `lower[l]` leads to the longest length up to l whose pile
    is not empty, by path halving, so that a sample is placed in constant time.
    """
    # A row that takes all samples is as good as a longer one, for which as many piles would wait.
    max_length = min(max_length, int(window.lengths.sum()))
    waiting: list[list[int]] = [[] for _ in range(max_length + 1)]
    for sample, length in zip(window.samples.tolist(), window.lengths.tolist(), strict=True):
        waiting[length].append(sample)
    lower = [length if pile or not length else length - 1 for length, pile in enumerate(waiting)]
    placed: list[int] = []
    sizes: list[int] = []
    while True:
        room, size = max_length, 0
        while True:
            fit = room
            while lower[fit] != fit:
                lower[fit] = lower[lower[fit]]
                fit = lower[fit]
            if not fit:
                break
            placed.append(waiting[fit].pop())
            if not waiting[fit]:
                lower[fit] = fit - 1
            room -= fit
            size += 1
        if not size:
            return PackedWindow(np.array(placed, np.int64), np.array(sizes, np.int64))
        sizes.append(size)


def single_rows(order: Integers) -> Rows:
    """One sample a row."""
    return Rows(order, np.arange(len(order) + 1))


def measure_fill(lengths: Integers, rows: Rows, max_length: int) -> float:
    """Share of the rows' room that holds tokens."""
    return float(lengths[rows.samples].sum()) / (len(rows) * max_length)
