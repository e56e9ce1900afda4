"""Dialogues that came before, and those whose question is in the evaluation set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.findings import Action, Finding

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

_REMARKS = {
    "duplicate": ("the same dialogue came before", "remove it, or set duplicate=drop"),
    "eval_overlap": ("its question is in the evaluation set", "remove it from one of the two"),
}


class HashedChunk(Protocol):
    """What is looked at of a chunk of R dialogues."""

    path: str
    findings: list[Finding]
    lines: npt.NDArray[np.int64]  # [R]
    hashes: Hashes  # [R], of the whole dialogue
    question_hashes: Hashes  # [R], of what comes before the last answer; [0] if not compared


class SeenHashes:
    """A growing set at 8 bytes a hash: sorted arrays, each larger than all behind it."""

    def __init__(self) -> None:
        self.runs: list[Hashes] = []

    def contains(self, hashes: Hashes) -> Flags:
        """[N], whether each hash is in the set."""
        found = np.zeros(len(hashes), np.bool_)
        for run in self.runs:
            places = np.searchsorted(run, hashes)
            found |= run[np.minimum(places, len(run) - 1)] == hashes
        return found

    def add(self, hashes: Hashes) -> Flags:
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


@dataclass(slots=True)
class RepeatFinder:
    """Looks through chunks one after the other."""

    actions: Mapping[str, Action]  # of the finding kinds
    eval_questions: SeenHashes | None = None
    seen: SeenHashes = field(default_factory=SeenHashes)

    def find(self, chunk: HashedChunk) -> Flags:
        """Report the repeats of a chunk; [R], which dialogues are left out for it."""
        is_dropped = self._report("duplicate", chunk, self.seen.add(chunk.hashes))
        if self.eval_questions is not None:
            is_overlap = self.eval_questions.contains(chunk.question_hashes)
            is_dropped = is_dropped | self._report("eval_overlap", chunk, is_overlap)
        return is_dropped

    def _report(self, kind: str, chunk: HashedChunk, is_found: Flags) -> Flags:
        action, (reason, fix) = self.actions[kind], _REMARKS[kind]
        chunk.findings += [
            Finding(chunk.path, line, kind, action, "messages", reason, fix)
            for line in chunk.lines[is_found].tolist()
        ]
        return is_found if action == "drop" else np.zeros_like(is_found)
