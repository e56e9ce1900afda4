"""Finds the setting that somebody meant: first by what a word means, then by how it is spelled."""

from collections.abc import Iterable
from difflib import get_close_matches

from hunyuan_train.config.other_tools import MEANT
from hunyuan_train.config.settings import SECTION_OF
from hunyuan_train.config.vendor import REFUSED, RENAMED, TRANSLATED

LEAST_LIKENESS = 0.75  # of two spellings: below, words are alike by chance


def suggest(name: object, known: Iterable[str], *, prefix: str = "") -> str:
    """Name the known word that was meant, and where it lives.

    Args:
        name: what was given.
        known: the words that may be meant.
        prefix: stands before each of them, such as --.
    """
    words = set(known)
    nearest = find_nearest_word(str(name), words)
    if nearest is None:
        return "`hunyuan-train train --help` lists all of them"
    if nearest in REFUSED and nearest not in words:
        return f"{prefix}{nearest} is not offered either: {REFUSED[nearest]}"
    section = f" (section {SECTION_OF[nearest]})" if nearest in SECTION_OF else ""
    return f"did you mean {prefix}{nearest}{section}?"


def find_nearest_word(name: str, words: set[str]) -> str | None:
    """The word meant, among known ones and among those that other tools use for them."""
    word = name.lower().replace("-", "_")
    meanings = {**MEANT, **RENAMED, **{one: one for one in words}}
    foreign = {one: one for one in (*TRANSLATED, *REFUSED)}
    meanings = {one: own for one, own in meanings.items() if own in words} | {
        one: own for one, own in foreign.items() if words & SECTION_OF.keys()
    }
    if word in meanings:
        return meanings[word]
    close = get_close_matches(word, list(meanings), n=1, cutoff=LEAST_LIKENESS)
    return meanings[close[0]] if close else None
