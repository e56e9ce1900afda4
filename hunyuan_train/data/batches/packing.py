"""Packing: which samples share a row of `max_seq_length` tokens.

It is a pure function of the data set and the seed, so every rank computes the same rows, and a run
resumes on any number of ranks.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hunyuan_train.data.shuffle import Integers


class Window(NamedTuple):
    """Samples that are packed together."""

    samples: Integers  # [N], in random order; one may occur several times
    lengths: Integers  # [N]


class PackedWindow(NamedTuple):
    """The same samples in rows."""

    samples: Integers  # [N]
    sizes: Integers  # of each row, in samples


def pack_windows(windows: Iterable[Window], max_length: int) -> Iterator[PackedWindow]:
    """Windows of samples into rows, one after the other.

    Best fit: every row opens with the longest sample left and takes the longest that still fits.

    Args:
        windows: whose samples are none above `max_length`.
        max_length: of a row.
    """
    return (_pack_window(window, max_length) for window in windows)


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
