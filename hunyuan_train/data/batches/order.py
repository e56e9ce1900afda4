"""Which samples an epoch shows, and in which order: any part of it without the rest.

Pairs stay together, so what is ordered are units: single samples, or the two of a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.shuffle import Integers, Shuffle, shuffle
from hunyuan_train.errors import DataError

_GROUP = 1 << 12  # samples sorted by length together, without packing
_BLOCK = 64  # neighbours in length that stay neighbours


class Order(Protocol):
    """Numbers in some order."""

    def __len__(self) -> int: ...

    def take(self, places: Integers) -> Integers:
        """Which numbers stand at some places."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The units of one source in an epoch: all of them some times, then a random part."""

    units: range
    num_whole: int
    num_extra: int
    extra: Shuffle  # of all units, of which the first ones are shown once more

    def __len__(self) -> int:
        return self.num_whole * len(self.units) + self.num_extra

    def take(self, places: Integers) -> Integers:
        """Which units stand at some places, not yet shuffled."""
        num_in_whole = self.num_whole * len(self.units)
        units = places % len(self.units)
        is_extra = places >= num_in_whole
        units[is_extra] = self.extra.take(places[is_extra] - num_in_whole)
        return units + self.units.start


@dataclass(frozen=True, slots=True, eq=False)
class UnitOrder:
    """The units of one epoch in random order, each as often as its source's weight says."""

    sources: list[Shown]
    starts: Integers  # of each source in the order before it is shuffled
    shuffled: Shuffle

    def __len__(self) -> int:
        return len(self.shuffled)

    def take(self, places: Integers) -> Integers:
        """Which units stand at some places: [N] of [N]."""
        before = self.shuffled.take(places)
        owners = np.searchsorted(self.starts, before, side="right") - 1
        units = np.empty_like(before)
        for owner in np.unique(owners).tolist():
            is_mine = owners == owner
            units[is_mine] = self.sources[owner].take(before[is_mine] - self.starts[owner])
        return units


def order_units(dataset: Dataset, generator: np.random.Generator) -> UnitOrder:
    """Draw the order of an epoch's units.

    Raises:
        DataError: the weights leave nothing.
    """
    sources = [
        Shown(units, num_whole, num_extra, shuffle(len(units), generator))
        for units, num_whole, num_extra in dataset.times_shown()
    ]
    ends = np.cumsum([len(source) for source in sources])
    if not ends[-1]:
        raise DataError("the weights in train_data_file leave not one sample; raise one of them")
    starts = np.concatenate([[0], ends[:-1]])
    return UnitOrder(sources, starts, shuffle(int(ends[-1]), generator))


class LengthGroups:
    """A random order in which neighbours have similar lengths, so that ranks take equal time.

    Samples in random order are sorted in groups; what is sorted is cut into blocks, and the blocks
    of all groups are shuffled.
    """

    def __init__(
        self,
        num_rows: int,
        measure: Callable[[Integers], Integers],
        generator: np.random.Generator,
    ) -> None:
        """Draw an order.

        Args:
            num_rows: that are ordered.
            measure: the lengths of some of them.
            generator: of random numbers.
        """
        self.measure = measure
        self.rows = shuffle(num_rows, generator)
        num_blocks = -(-num_rows // _BLOCK)
        self.blocks = shuffle(num_blocks, generator)
        # The last block may be shorter than the others, wherever it comes to stand.
        self.num_missing = num_blocks * _BLOCK - num_rows
        slot = int(self.blocks.find(np.array([num_blocks - 1]))[0])
        self.end_of_short = (slot + 1) * _BLOCK - self.num_missing

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Integers) -> Integers:
        """Which rows stand at some places: [N] of [N]."""
        places = np.where(places >= self.end_of_short, places + self.num_missing, places)
        blocks = self.blocks.take(places // _BLOCK)
        groups, in_group = np.divmod(blocks * _BLOCK + places % _BLOCK, _GROUP)
        rows = np.empty_like(places)
        for group in np.unique(groups).tolist():
            is_mine = groups == group
            rows[is_mine] = self._sort(group)[in_group[is_mine]]
        return rows

    def _sort(self, group: int) -> Integers:
        first = group * _GROUP
        rows = self.rows.take(np.arange(first, min(first + _GROUP, len(self))))
        return rows[np.argsort(self.measure(rows), kind="stable")]
