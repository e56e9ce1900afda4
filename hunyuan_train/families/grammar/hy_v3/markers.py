# ruff: noqa: RUF001  # the bars of these markers are wide ones
"""The markers of Hy3 and Hy-MT2-30B-A3B, found in the vocabulary that a checkpoint comes with.

Their spelling is a checkpoint's own (Hy3's end in `:opensource`, those of other checkpoints in
nothing or in something else), and their ids are the tokenizer's. What stands here are the stems by
which they are told apart.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hunyuan_train.families.grammar.marks import find_spelled

_USER = re.compile(r"<｜hy_User(?P<suffix>[^｜]*)｜>")
_CONTROL = re.compile(r"[<＜][｜|].*[｜|][>＞]")


def _spelled(*stems: str) -> Any:  # noqa: ANN401 as of `dataclasses.field`
    """A marker by its stems, one for each spelling that was published."""
    return field(metadata={"stems": stems})


@dataclass(frozen=True, kw_only=True, slots=True)
class Markers:
    """How one checkpoint spells its markers."""

    begin: str = _spelled("<｜hy_begin_of_sentence{}｜>", "<｜hy_begin▁of▁sentence{}｜>")
    user: str = _spelled("<｜hy_User{}｜>")
    assistant: str = _spelled("<｜hy_Assistant{}｜>")
    reasoning_mode: str = _spelled("<｜reasoning_mode{}｜>")
    end: str = _spelled("<｜hy_eos{}｜>")
    pad: str = _spelled("<｜hy_pad{}｜>", "<｜hy_▁pad▁{}｜>")
    think_open: str = _spelled("<think{}>")
    think_close: str = _spelled("</think{}>")
    calls_open: str = _spelled("<tool_calls{}>")
    calls_close: str = _spelled("</tool_calls{}>")
    call_open: str = _spelled("<tool_call{}>")
    call_close: str = _spelled("</tool_call{}>")
    separator: str = _spelled("<tool_sep{}>")
    key_open: str = _spelled("<arg_key{}>")
    key_close: str = _spelled("</arg_key{}>")
    value_open: str = _spelled("<arg_value{}>")
    value_close: str = _spelled("</arg_value{}>")
    results_open: str = _spelled("<tool_responses{}>")
    results_close: str = _spelled("</tool_responses{}>")
    result_open: str = _spelled("<tool_response{}>")
    result_close: str = _spelled("</tool_response{}>")
    others: tuple[str, ...]  # added tokens that no dialogue holds
    missing: str  # characters that the vocabulary has no token for

    @property
    def written(self) -> tuple[str, ...]:
        """All that renderings may hold."""
        spelled = asdict(self)
        names = (one.name for one in fields(self) if one.metadata)
        return tuple(spelled[name] for name in names if name != "pad")

    @property
    def tags(self) -> tuple[str, ...]:
        """Those of thoughts, calls and results."""
        return tuple(one for one in self.written if not _CONTROL.fullmatch(one))

    @property
    def ends(self) -> tuple[str, ...]:
        """Those that a config.json may name as the end of a text."""
        turns = (self.begin, self.user, self.assistant, self.reasoning_mode)
        found = [one for one in (self.end, self.pad, *self.others) if _CONTROL.fullmatch(one)]
        return tuple(dict.fromkeys([self.end, *(one for one in found if one not in turns)]))


def are_markers(added: Mapping[str, int]) -> bool:
    """Whether added tokens are those of this grammar, complete or not."""
    suffixes = [match["suffix"] for match in map(_USER.fullmatch, added) if match]
    return any(suffixes) or any(one.startswith("<｜reasoning_mode") for one in added)


def find_markers(
    added: Mapping[str, int], config: Mapping[str, Any], folder: Path, *, missing: str
) -> Markers:
    """The markers among a vocabulary's added tokens.

    Raises:
        DataError: it lacks some.
    """
    suffixes = [match["suffix"] for match in map(_USER.fullmatch, added) if match]
    suffix = suffixes[0] if suffixes else str(config.get("token_suffix", ""))
    spellings = {
        marker.name: [stem.format(one) for one in (suffix, "") for stem in marker.metadata["stems"]]
        for marker in fields(Markers)
        if marker.metadata
    }
    found = find_spelled(spellings, added, config, folder)
    others = tuple(one for one in added if one not in found.values())
    return Markers(**found, others=others, missing=missing)
