"""The smaller files of a run: answers, starts, router loads and others, an object a line."""

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from hunyuan_train.config import run_files
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.report.growing_file import GrowingFile
from hunyuan_train.report.metric_table import is_number

Row = dict[str, Any]


class RowFile:
    """The objects of one file, read on while it grows."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = GrowingFile(folder / name)
        self.fields = FIELDS[name]
        self.rows: list[Row] = []
        self.faults: list[str] = []
        self.num_lines = 0

    def read_all(self) -> None:
        """Read what is new."""
        while self._read_on():
            pass

    def _read_on(self) -> bool:
        try:
            is_cut, lines = self.file.read_new()
        except (OSError, ValueError) as error:
            self.faults = [f"{self.file.path} cannot be read: {error}"]
            return False
        if is_cut:
            self.rows, self.faults, self.num_lines = [], [], 0
        for line in lines:
            self.num_lines += 1
            try:
                self.rows.append(read_row(line, self.fields))
            except (ValueError, RecursionError) as error:
                self.faults.append(
                    f"{self.file.path}, line {self.num_lines}, is not what a run writes there "
                    f"({error}); fix the line, or delete it"
                )
        return bool(lines)


def read_row(line: bytes, fields: Mapping[str, Callable[[object], bool]]) -> Row:
    """Read one line, and check what the page shows of it.

    Raises:
        ValueError: naming what is wrong.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it holds no JSON object")
    for field, is_right in fields.items():
        if not is_right(row.get(field)):
            raise ValueError(f"{field} is {make_plain_name(row.get(field), most=80)}")
    return row


def is_step(value: object) -> bool:
    """Whether it counts steps."""
    return type(value) is int and 0 <= value < 2**53


def is_text(value: object) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_call_score(value: object) -> bool:
    """Whether it says what calls were worth, if anything."""
    if not isinstance(value, dict):
        return value is None
    by_tool = value.get("by_tool")
    return (
        is_flag(value.get("is_right"))
        and isinstance(by_tool, dict)
        and all(map(is_flag, by_tool.values()))
    )


def is_plan(value: object) -> bool:
    """Whether it is what a start foresaw, if anything."""
    return value is None or (
        isinstance(value, dict)
        and all(is_finite(value.get(name, 0)) for name in ("memory_gib", "tokens_per_second"))
    )


def is_data(value: object) -> bool:
    """Whether it says what data a start had, if anything."""
    return value is None or value == {} or (isinstance(value, dict) and "samples" in value)


def is_finite(value: object) -> bool:
    """Whether it is a number that can be shown."""
    return is_number(value) and isinstance(value, int | float) and isfinite(value)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def is_load(value: object) -> bool:
    """Whether it is a table of experts' shares, a row for each layer, if anything."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(row, list) and row and all(map(_is_share, row)) for row in value)
        and len({len(row) for row in value}) <= 1
    )


# What the page reads of each file's lines, and how to tell that it is that.
FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {
    run_files.STARTS: {
        "step": is_step,
        "num_processes": is_finite,
        "versions": lambda value: isinstance(value, dict),
        "git": lambda value: isinstance(value, dict | None),
        "plan": is_plan,
        "data": is_data,
        "time": is_text,
        "device": is_text,
        "total_steps": lambda value: value is None or is_step(value),
    },
    run_files.ANSWERS: {
        "step": is_step,
        **dict.fromkeys(("prompt", "reference", "output", "mode"), is_text),
        **dict.fromkeys(("is_exact", "is_well_formed", "is_leaking"), is_flag),
        "set_f1": is_number,
        "calls": is_call_score,
    },
    run_files.PAIRS: {
        "step": is_step,
        **dict.fromkeys(("prompt", "chosen", "rejected"), is_text),
        **dict.fromkeys(("reward_chosen", "reward_rejected"), is_number),
    },
    run_files.SAMPLES: {
        "step": is_step,
        **dict.fromkeys(("prompt", "output", "mode"), is_text),
        "is_well_formed": lambda value: value is None or is_flag(value),
        "cut_after": lambda value: value is None or is_step(value),
    },
    run_files.NEEDLES: {"model": is_text, "length": is_step, "is_exact": is_flag},
    run_files.ROUTER_LOAD: {"step": is_step, "kind": is_text, "load": is_load},
    run_files.QUARANTINE: {"step": is_step},
}
