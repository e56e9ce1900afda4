"""Which 64-bit hashes came before, at 8 bytes each."""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class SeenHashes:
    """A growing set, kept as a few sorted arrays of which each is larger than all behind it."""

    def __init__(self) -> None:
        self.runs: list[Hashes] = []

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """[N], whether each hash is in the set."""
        found = np.zeros(len(hashes), np.bool_)
        for run in self.runs:
            places = np.searchsorted(run, hashes)
            found |= run[np.minimum(places, len(run) - 1)] == hashes
        return found

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Put hashes in; [N], whether each was there before or comes earlier in `hashes`."""
        is_repeat = np.ones(len(hashes), np.bool_)
        unique, first = np.unique(hashes, return_index=True)
        is_repeat[first] = False
        is_repeat |= self.contains(hashes)
        new = unique[~is_repeat[first]]
        while self.runs and len(self.runs[-1]) <= len(new):
            new = np.sort(np.concatenate([self.runs.pop(), new]))
        if len(new):
            self.runs.append(new)
        return is_repeat
