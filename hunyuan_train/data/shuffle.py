"""Random orders of which any part is known without the rest.

An order of up to `TABLE_LENGTH` things is drawn and kept. A longer one is a keyed bijection, so
that a data set of any size takes no memory for it: a Feistel network (Luby and Rackoff, 1988) over
the next power of two, walked along until it comes back among the things there are (cycle walking:
Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Short orders stay tables because
on few things a network reaches few orders.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TABLE_LENGTH = 1 << 20  # 8 MB; runs began with tables alone, so that these keep their order
_NUM_ROUNDS = 8  # four make a network look random to whoever sees few of its values

Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Shuffle:
    """A random order of the numbers below `length`."""

    length: int
    table: Integers | None  # [length], of a short order
    keys: _Words  # of the rounds of a long one

    def __len__(self) -> int:
        return self.length

    def take(self, places: Integers) -> Integers:
        """Which numbers stand at some places: [N] of [N]."""
        if self.table is not None:
            return self.table[places]
        return self._walk(places, is_inverse=False)

    def find(self, numbers: Integers) -> Integers:
        """At which places some numbers stand: [N] of [N]."""
        if self.table is not None:
            return np.argsort(self.table)[numbers]
        return self._walk(numbers, is_inverse=True)

    def _walk(self, numbers: Integers, *, is_inverse: bool) -> Integers:
        values = self._apply_network(numbers.astype(np.uint64), is_inverse=is_inverse)
        outside = np.flatnonzero(values >= self.length)
        while len(outside):  # half of all at most, and of those half again
            values[outside] = self._apply_network(values[outside], is_inverse=is_inverse)
            outside = outside[values[outside] >= self.length]
        return values.astype(np.int64)

    def _apply_network(self, values: _Words, *, is_inverse: bool) -> _Words:
        """A bijection of the numbers below the next power of two."""
        num_bits = (self.length - 1).bit_length()
        shift = np.uint64(num_bits // 2)
        masks = [
            np.uint64((1 << num_bits - num_bits // 2) - 1),
            np.uint64((1 << num_bits // 2) - 1),
        ]
        halves = [values >> shift, values & masks[1]]
        rounds = range(_NUM_ROUNDS)
        for number in reversed(rounds) if is_inverse else rounds:
            changed = number % 2
            halves[changed] ^= _mix(halves[1 - changed] ^ self.keys[number]) & masks[changed]
        return halves[0] << shift | halves[1]


def shuffle(length: int, generator: np.random.Generator) -> Shuffle:
    """Draw an order."""
    if length <= TABLE_LENGTH:
        return Shuffle(length, generator.permutation(length), np.zeros(0, np.uint64))
    keys = generator.integers(2**64, size=_NUM_ROUNDS, dtype=np.uint64)
    return Shuffle(length, None, keys)


def _mix(words: _Words) -> _Words:
    """Spread every bit over all others: the last steps of SplitMix64 (Steele and others, 2014)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
