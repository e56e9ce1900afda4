# ruff: noqa: RUF001  # the bars of these markers are wide ones
"""The markers of the small dense Hunyuans (0.5B, 1.8B, 4B), found in a checkpoint's vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hunyuan_train.families.grammar.marks import find_spelled, find_stated

_SPELLINGS = {
    "begin": "<｜hy_begin▁of▁sentence｜>",
    "system_end": "<｜hy_place▁holder▁no▁3｜>",
    "user": "<｜hy_User｜>",
    "assistant": "<｜hy_Assistant｜>",
    "end": "<｜hy_place▁holder▁no▁2｜>",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Markers:
    """How one checkpoint spells its markers."""

    begin: str
    system_end: str
    user: str
    assistant: str
    end: str
    pad: str
    others: tuple[str, ...]  # added tokens beside these
    missing: str  # characters that the vocabulary has no token for

    @property
    def turns(self) -> tuple[str, ...]:
        """Those around turns."""
        return self.begin, self.system_end, self.user, self.assistant, self.end


def are_markers(added: Mapping[str, int]) -> bool:
    """Whether added tokens are those of this grammar, complete or not."""
    return _SPELLINGS["user"] in added


def find_markers(
    added: Mapping[str, int], config: Mapping[str, Any], folder: Path, *, missing: str
) -> Markers:
    """The markers among a vocabulary's added tokens.

    Raises:
        DataError: it lacks some.
    """
    spellings = {name: [one] for name, one in _SPELLINGS.items()}
    found = find_spelled(spellings, added, config, folder)
    others = tuple(one for one in added if one not in found.values())
    pad = find_stated("pad", added, config) or found["end"]
    return Markers(**found, pad=pad, others=others, missing=missing)
