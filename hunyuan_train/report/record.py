"""A run as its folder tells it, read without torch. Everything but the metrics may be missing."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.config import run_files
from hunyuan_train.errors import ConfigError
from hunyuan_train.json_file import read_bytes
from hunyuan_train.plain_text import make_plain_name

Row = dict[str, Any]
MAX_WARNINGS = 40
MAX_BYTES, MAX_SETTINGS_BYTES = 2**30, 2**20
LARGEST = 2**1000


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one run left."""

    name: str
    metrics: list[Row]  # a line for each logged step
    settings: dict[str, Any]  # by name, sections left out
    starts: list[Row]
    answers: list[Row]
    needles: list[Row]
    router_loads: list[Row]
    quarantine: list[Row]
    warnings: dict[str, int]  # and how often each was given

    @property
    def plan(self) -> dict[str, Any]:
        """What was foreseen at the last start; empty where that is not known."""
        plan: dict[str, Any] = self.starts[-1].get("plan", {}) if self.starts else {}
        return plan

    def series(self, name: str) -> list[tuple[int, float]]:
        """A number by step, where it was logged and is finite: nothing else can be drawn."""
        rows = [row for row in self.metrics if row.get(name) is not None]
        return [(row["step"], float(row[name])) for row in rows if isfinite(row[name])]

    def last(self, name: str) -> float | None:
        """The latest value of a number, finite or not."""
        values = [row[name] for row in self.metrics if row.get(name) is not None]
        return float(values[-1]) if values else None


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run, also of one that is going on.

    Raises:
        ConfigError: it holds no metrics, or a file is damaged.
    """
    metrics = read_lines(folder / run_files.METRICS)
    if not metrics:
        raise ConfigError(
            f"{folder} holds no {run_files.METRICS} with a logged step, so there is nothing to "
            "report; give the output_dir of a run, like runs/tiny"
        )
    return RunRecord(
        name=folder.resolve().name,
        metrics=metrics,
        settings=read_settings(folder / run_files.CONFIG),
        starts=read_lines(folder / run_files.STARTS),
        answers=read_lines(folder / run_files.ANSWERS),
        needles=read_lines(folder / run_files.NEEDLES),
        router_loads=read_lines(folder / run_files.ROUTER_LOAD),
        quarantine=read_lines(folder / run_files.QUARANTINE),
        warnings=read_warnings(folder / run_files.LOG),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run by name; none where it has left no file of them.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        sections = yaml.safe_load(read_bytes(path, max_bytes=MAX_SETTINGS_BYTES).decode("utf-8"))
        settings = {name: value for part in sections.values() for name, value in part.items()}
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} holds no settings of a run ({' '.join(str(error).split())}); bring it back, "
            "or move it away: the report does without"
        ) from error
    odd = [name for name, value in settings.items() if not _is_setting(value)]
    if odd:
        raise ConfigError(
            f"{path} gives {make_plain_name(odd[0])} no value that a setting has; bring the file "
            "back, or move it away: the report does without"
        )
    return settings


def _is_setting(value: object) -> bool:
    """Whether this is one value or a list of them: aliases can make a small file endless."""
    values = value if isinstance(value, list) else [value]
    return not any(isinstance(one, list | dict | tuple | set) for one in values)


def read_lines(path: Path) -> list[Row]:
    """The objects of a file of JSON lines; a last line that is still being written is left out.

    Raises:
        ConfigError: a line holds something else than a run writes there.
    """
    if not path.exists():
        return []
    rows = []
    try:
        lines = read_bytes(path, max_bytes=MAX_BYTES).split(b"\n")[:-1]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_read_row(line, path.name))
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number}, is not what a run writes there ({error}); fix the line, "
                "or delete it"
            ) from error
    return rows


def _read_row(line: bytes, name: str) -> Row:
    """Read one line, and check what the page shows of it.

    Raises:
        ValueError: naming what is wrong.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it holds no JSON object")
    for field, is_right in FIELDS[name].items():
        if not is_right(row.get(field)):
            raise ValueError(f"{field} is {make_plain_name(row.get(field), most=80)}")
    if name == run_files.METRICS:
        odd = [one for one in row if not (row[one] is None or is_number(row[one]))]
        if odd:
            raise ValueError(f"{make_plain_name(odd[0])} is no number")
    return row


def is_number(value: object) -> bool:
    """Whether it is a number: not finite, or in the range in which a chart has room around it."""
    if not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST or (isinstance(value, float) and not isfinite(value))


def is_step(value: object) -> bool:
    """Whether it counts steps."""
    return type(value) is int and 0 <= value < 2**63


def is_text(value: object) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_plan(value: object) -> bool:
    """Whether it is what a start foresaw, if anything."""
    return value is None or (
        isinstance(value, dict)
        and all(is_number(value.get(name, 0)) for name in ("memory_gib", "tokens_per_second"))
    )


def is_data(value: object) -> bool:
    """Whether it says what data a start had, if anything."""
    return value is None or value == {} or (isinstance(value, dict) and "samples" in value)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def is_load(value: object) -> bool:
    """Whether it is a table of experts' shares, a row for each layer, if anything."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(row, list) and row and all(map(_is_share, row)) for row in value)
    )


# What the page reads of each file's lines, and how to tell that it is that.
FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {
    run_files.METRICS: {"step": is_step},
    run_files.STARTS: {
        "step": is_step,
        "num_processes": is_number,
        "versions": lambda value: isinstance(value, dict),
        "git": lambda value: isinstance(value, dict | None),
        "plan": is_plan,
        "data": is_data,
        "time": is_text,
        "device": is_text,
    },
    run_files.ANSWERS: {
        "step": is_step,
        **dict.fromkeys(("prompt", "reference", "output", "mode"), is_text),
        **dict.fromkeys(("is_exact", "is_well_formed", "is_leaking"), is_flag),
        "set_f1": is_number,
    },
    run_files.NEEDLES: {"model": is_text, "length": is_step, "is_exact": is_flag},
    run_files.ROUTER_LOAD: {"step": is_step, "kind": is_text, "load": is_load},
    run_files.QUARANTINE: {},
}


def read_warnings(path: Path) -> dict[str, int]:
    """Our own warnings and the libraries', the first ones, each once with its count."""
    if not path.exists():
        return {}
    counts: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, found, rest = line.partition(" WARNING ")
        logger, _, text = rest.partition(": ")
        if found and logger != "py.warnings":
            counts[text] += 1
    return dict(list(counts.items())[:MAX_WARNINGS])
