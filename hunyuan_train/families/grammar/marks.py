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
        match = known.search(text) if any(one in text for one in beginnings) else None
        return match[0] if match else ""

    return find


def count_overlap(text: str, mark: str) -> int:
    """How many last characters of a text are the first ones of a mark that is not whole yet."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
