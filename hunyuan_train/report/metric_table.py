"""The numbers of `metrics.jsonl` as columns, read while the file grows.

A million lines take seconds to read. Until they are, lines picked at even distances stand for all
of them: a page is drawn at once, and says that it is a sample.
"""

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hunyuan_train.config.run_files import METRICS
from hunyuan_train.json_file import open_regular_file
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.report.growing_file import GrowingFile, parse_lines

Values = NDArray[np.float64]

ABSENT = np.nan  # a line does not have the number
NOT_FINITE = np.inf  # it has null, or what JSON calls NaN or Infinity: nothing that can be drawn
LARGEST = 2**1000  # beyond, a chart has no room around a curve
MAX_FAULTS = 20
SAMPLED_ABOVE_BYTES = 2**23  # less is read in the time that a sample takes
NUM_SAMPLED = 3000
LONGEST_LINE = 2**16  # of those that a sample looks for


@dataclass(slots=True)
class Columns:
    """Numbers by name, a value for each line; an array may have room for more behind them."""

    num_rows: int = 0
    steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    by_name: dict[str, Values] = field(default_factory=dict)

    def extend(self, steps: NDArray[np.int64], numbers: dict[str, Values]) -> None:
        """Add lines; readers of the present rows are not disturbed."""
        total = self.num_rows + len(steps)
        self.steps = _with_room(self.steps, total, 0)
        self.steps[self.num_rows : total] = steps
        for name in self.by_name.keys() | numbers.keys():
            column = _with_room(self.by_name.get(name, np.zeros(0)), total, ABSENT)
            column[self.num_rows : total] = numbers.get(name, ABSENT)
            self.by_name[name] = column
        self.num_rows = total

    def series(self, name: str) -> tuple[NDArray[np.int64], Values]:
        """Steps and values of a number, in the lines that have it; infinite where it is no number.

        Returns:
            [lines] each.
        """
        num_rows = self.num_rows
        column = self.by_name.get(name)
        if column is None:
            return np.zeros(0, np.int64), np.zeros(0)
        values = column[:num_rows]
        has_it = ~np.isnan(values)
        return self.steps[:num_rows][has_it], values[has_it]

    def last(self, name: str) -> float | None:
        """The latest value of a number, if there is one; infinite where it was none."""
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    def names(self) -> list[str]:
        """Of all numbers, in the order of their first line."""
        return list(self.by_name)


def _with_room(array: NDArray[Any], total: int, fill: float) -> NDArray[Any]:
    """The array itself if it has room; else a larger one, because others may read this one."""
    if len(array) >= total:
        return array
    larger = np.full(max(total, 2 * len(array), 1024), fill, array.dtype)
    larger[: len(array)] = array
    return larger


class MetricTable:
    """The numbers of one run. One thread reads on; any number of others look."""

    def __init__(self, folder: Path) -> None:
        self.file = GrowingFile(folder / METRICS)
        self.read = Columns()  # whole lines from the beginning on
        self.sample: Columns | None = None  # of a file that has not been read to its end once
        self.faults: list[str] = []
        self.num_lines = 0

    @property
    def columns(self) -> Columns:
        """What to show now."""
        return self.sample or self.read

    @property
    def share_read(self) -> float:
        """How much of the file is known by every line."""
        return self.file.offset / self.file.num_bytes if self.file.num_bytes else 1.0

    def read_on(self) -> bool:
        """Read a part of what is new, and say whether anything was.

        Raises:
            OSError: no file has such a name.
        """
        try:
            if not self.file.offset:
                self._sample_if_long()
            is_cut, lines = self.file.read_new()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                raise  # whatever file that is, the command says which rule it breaks
            self.faults = [f"it cannot be read: {error}"]
            self.sample = None
            return False
        if is_cut:
            self.read, self.faults, self.num_lines = Columns(), [], 0
        if lines:
            self._take(lines)
        else:
            self.sample = None
        return bool(lines)

    def read_all(self) -> None:
        """Read to the end of the file."""
        while self.read_on():
            pass

    def _sample_if_long(self) -> None:
        path = self.file.path
        if path.exists() and path.stat().st_size > SAMPLED_ABOVE_BYTES:
            columns = as_columns(sample_rows(path))
            self.sample = Columns()
            if columns is not None:
                self.sample.extend(*columns)

    def _take(self, lines: list[bytes]) -> None:
        values, unreadable = parse_lines(lines, read_odd_line)
        columns = None if unreadable else as_columns(values)
        if columns is None:  # some line is odd: find out which
            rows = []
            for index, value in enumerate(values):
                fault = unreadable.get(index) or find_fault(value)
                if fault:
                    self._note(self.num_lines + index + 1, fault)
                else:
                    rows.append(value)
            columns = as_columns(rows)
        self.num_lines += len(lines)
        if columns is not None:
            self.read.extend(*columns)

    def _note(self, number: int, fault: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(
                f"{self.file.path}, line {number}, is not what a run writes there ({fault}); fix "
                "the line, or delete it"
            )


def read_odd_line(line: bytes) -> object:
    """Read one line the slow way, which also knows NaN and Infinity."""
    return json.loads(line.decode("utf-8"))


def find_fault(row: object) -> str | None:
    """What is wrong with a line; None where it is as a run writes it."""
    if not isinstance(row, dict):
        return "it holds no JSON object"
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        return f"step is {make_plain_name(step, most=80)}"
    odd = [name for name, value in row.items() if not (value is None or is_number(value))]
    return f"{make_plain_name(odd[0])} is no number" if odd else None


def is_number(value: object) -> bool:
    """Whether it is a number: not finite, or in the range in which a chart has room around it."""
    if not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST or (isinstance(value, float) and not isfinite(value))


def as_columns(rows: Sequence[Any]) -> tuple[NDArray[np.int64], dict[str, Values]] | None:
    """Objects as columns: steps, and values by name; None where a row is not as a run writes it.

    Most lines have the same names in the same order: all of a kind are turned around at once.

    Args:
        rows: what lines hold.
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if type(row) is not dict:
            return None
        kinds.setdefault(tuple(row), []).append(index)
    steps = np.zeros(len(rows), np.int64)
    found: dict[str, Values] = {}
    for names, indices in kinds.items():
        columns = dict(zip(names, zip(*(rows[one].values() for one in indices), strict=True),
                           strict=True))  # fmt: skip
        known = columns.pop("step", ())
        if set(map(type, known)) != {int} or min(known) < 0 or max(known) >= 2**63:
            return None
        steps[indices] = known
        for name, values in columns.items():
            column = _as_column(values)
            if column is None:
                return None
            if name not in found:
                found[name] = np.full(len(rows), ABSENT)
            found[name][indices] = column
    return steps, found


def _as_column(values: tuple[Any, ...]) -> Values | None:
    """Numbers, with those that are not finite marked as such; None where one is no number."""
    column = np.asarray(values)
    if column.dtype.kind == "O" or column.ndim > 1:  # some are null, or huge, or anything
        if not all(one is None or is_number(one) for one in values):
            return None
        column = np.asarray([np.nan if one is None else one for one in values], np.float64)
    if column.dtype.kind not in "iufb":
        return None
    column = column.astype(np.float64)
    is_finite = np.isfinite(column)
    if (np.abs(column[is_finite]) >= LARGEST).any():
        return None
    return np.where(is_finite, column, NOT_FINITE)


def sample_rows(path: Path, number: int = NUM_SAMPLED) -> list[Any]:
    """Lines at even distances in a long file, and its last one.

    Args:
        path: of the file, which may be growing.
        number: of lines at most.
    """
    lines = []
    with open_regular_file(path) as file:
        size = file.seek(0, 2)
        for index in range(number):
            start = size * index // number
            file.seek(start)
            if start:
                file.readline(LONGEST_LINE)  # the rest of one that began before
            lines.append(file.readline(LONGEST_LINE))
        file.seek(max(0, size - LONGEST_LINE))
        lines += file.read().split(b"\n")[-2:-1]
    whole = [line.rstrip(b"\n") for line in dict.fromkeys(lines) if line.strip()]
    values, _ = parse_lines(whole, read_odd_line)
    rows = [value for value in values if isinstance(value, dict) and not find_fault(value)]
    return sorted(rows, key=lambda row: row["step"])
