"""Finds the marks of a grammar: in the vocabulary of a checkpoint, and in a text.

Which marks a grammar has, and how they are spelled, stands in the grammar's own folder.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hunyuan_train.errors import DataError

SETTINGS = {"begin": "bos_token", "end": "eos_token", "pad": "pad_token"}  # which say it outright


def find_stated(name: str, added: Mapping[str, int], config: Mapping[str, Any]) -> str:
    """The marker that tokenizer_config.json names for a part, if it is a token; "" if not."""
    stated = config.get(SETTINGS.get(name, ""))
    stated = stated.get("content") if isinstance(stated, dict) else stated
    return stated if isinstance(stated, str) and stated in added else ""


def find_spelled(
    spellings: Mapping[str, Sequence[str]],
    added: Mapping[str, int],
    config: Mapping[str, Any],
    folder: Path,
) -> dict[str, str]:
    """Each marker as a vocabulary has it.

    Args:
        spellings: those that a marker may have, the usual one first, by the marker's name.
        added: ids of the vocabulary's added tokens.
        config: tokenizer_config.json.
        folder: of both, for the error.

    Raises:
        DataError: it lacks some.
    """
    found: dict[str, str] = {}
    absent: list[str] = []
    for name, candidates in spellings.items():
        stated = find_stated(name, added, config)
        known = [one for one in (stated, *candidates) if one in added]
        if known:
            found[name] = known[0]
        else:
            absent.append(candidates[0])
    if absent:
        raise DataError(
            f"the tokenizer in {folder} lacks {len(absent)} marker(s) of its dialogues "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}); it is of another "
            "model, or damaged: copy the folder that was published with the model"
        )
    return found


def make_finder(marks: Iterable[str], beginnings: Sequence[str]) -> Callable[[str], str]:
    """Gives the first mark that a text spells; "" where it spells none.

    Args:
        marks: of which one may begin as another does.
        beginnings: a text without any of them is passed over, which is fast.
    """
    known = re.compile("|".join(re.escape(one) for one in sorted(marks, key=len, reverse=True)))

    def find(text: str) -> str:
        match = known.search(text) if holds_any(text, beginnings) else None
        return match[0] if match else ""

    return find


def holds_any(text: str, parts: Iterable[str]) -> bool:
    """Whether one of some strings is somewhere in a text.

    A loop, and not `any`, which starts a generator that takes as long as all the searching.
    """
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


def count_overlap(text: str, mark: str) -> int:
    """How many last characters of a text are the first ones of a mark that is not whole yet."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)


class Incoming:
    """Text that comes in pieces, of which as much is taken as no later piece can change."""

    def __init__(self) -> None:
        self.text = ""  # all of it
        self.pending = ""  # of it, what is not taken yet

    def add(self, piece: str) -> None:
        """Take in the next piece."""
        self.text += piece
        self.pending += piece

    def may_begin(self, mark: str) -> bool:
        """Whether what is pending is shorter than a mark and could still become it."""
        return len(self.pending) < len(mark) and mark.startswith(self.pending)

    def drop(self, mark: str) -> bool:
        """Leave out a mark that what is pending begins with; whether it did."""
        is_there = self.pending.startswith(mark)
        self.pending = self.pending.removeprefix(mark)
        return is_there

    def take_until(
        self, *marks: str, is_last: bool, heeding: Sequence[str] = ()
    ) -> tuple[str, bool]:
        """Take the text before the first of some marks, and that mark.

        Args:
            marks: any of which ends the text.
            is_last: nothing follows; otherwise what may be the beginning of a mark waits.
            heeding: marks whose beginning waits, too.

        Returns:
            the text, and whether a mark ended it.
        """
        found = [(self.pending.index(mark), mark) for mark in marks if mark in self.pending]
        if found:
            position, mark = min(found)
            text, self.pending = self.pending[:position], self.pending[position + len(mark) :]
            return text, True
        overlaps = [count_overlap(self.pending, mark) for mark in (*marks, *heeding)]
        certain = len(self.pending) - (0 if is_last else max(overlaps))
        text, self.pending = self.pending[:certain], self.pending[certain:]
        return text, False
