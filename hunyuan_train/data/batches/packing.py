"""Samples into rows: packed to `max_seq_length`, or alone and grouped by length.

Which samples share a row is a pure function of the data set and the seed, so every rank computes
the same rows, and a run resumes on any number of ranks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Samples packed together: enough that rows come out full, few enough that samples of all lengths
# meet in every part of an epoch.
WINDOW = 1 << 16
_GROUP = 1 << 12  # samples sorted by length together, without packing
_BLOCK = 64  # neighbours in length that stay neighbours

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """R rows over an order of samples: row r holds `samples[bounds[r] : bounds[r + 1]]`."""

    samples: Integers
    bounds: Integers  # [R + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Integers:
        return self.samples[self.bounds[row] : self.bounds[row + 1]]


def pack_rows(lengths: Integers, order: Integers, *, max_length: int) -> Rows:
    """Best fit: every row opens with the longest sample left and takes the longest that still fits.

    Args:
        lengths: [S], none above `max_length`.
        order: samples to pack, in random order; one may occur several times.
    """
    parts = [
        _pack_window(lengths, order[start : start + WINDOW], max_length)
        for start in range(0, len(order), WINDOW)
    ]
    samples = np.concatenate([samples for samples, _ in parts])
    sizes = np.concatenate([sizes for _, sizes in parts])
    return Rows(samples, np.concatenate([[0], np.cumsum(sizes)]))


def _pack_window(lengths: Integers, order: Integers, max_length: int) -> tuple[Integers, Integers]:
    """Samples in row order, and the number in each row.

    Samples wait in one pile per length. `lower[l]` leads to the longest length up to l whose pile
    is not empty, by path halving, so that a sample is placed in constant time.
    """
    # A row that takes all samples is as good as a longer one, for which as many piles would wait.
    max_length = min(max_length, int(lengths[order].sum()))
    waiting: list[list[int]] = [[] for _ in range(max_length + 1)]
    for sample, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
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
            return np.array(placed, np.int64), np.array(sizes, np.int64)
        sizes.append(size)


def single_rows(order: Integers) -> Rows:
    """One sample a row."""
    return Rows(order, np.arange(len(order) + 1))


def group_by_length(lengths: Integers, generator: np.random.Generator) -> Integers:
    """A random order in which neighbours have similar lengths, so that ranks take equal time."""
    order = generator.permutation(len(lengths))
    blocks = []
    for start in range(0, len(order), _GROUP):
        group = order[start : start + _GROUP]
        by_length = group[np.argsort(lengths[group], kind="stable")]
        blocks += np.split(by_length, range(_BLOCK, len(group), _BLOCK))
    return np.concatenate([blocks[number] for number in generator.permutation(len(blocks))])


def measure_fill(lengths: Integers, rows: Rows, max_length: int) -> float:
    """Share of the rows' room that holds tokens."""
    return float(lengths[rows.samples].sum()) / (len(rows) * max_length)
