"""A run as its folder tells it, read without torch. Everything but the metrics may be missing."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.config import run_files
from hunyuan_train.errors import ConfigError

Row = dict[str, Any]
MAX_WARNINGS = 40


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
        """A number by step, where it was logged."""
        rows = [row for row in self.metrics if row.get(name) is not None]
        return [(int(row["step"]), float(row[name])) for row in rows]

    def last(self, name: str) -> float | None:
        """The latest value of a number."""
        series = self.series(name)
        return series[-1][1] if series else None


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run, also of one that is going on.

    Raises:
        ConfigError: it holds no metrics.
    """
    metrics = read_lines(folder / run_files.METRICS)
    if not metrics:
        raise ConfigError(
            f"{folder} holds no {run_files.METRICS} with a logged step, so there is nothing to "
            "report; give the output_dir of a run, like runs/tiny"
        )
    path = folder / run_files.CONFIG
    sections = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return RunRecord(
        name=folder.resolve().name,
        metrics=metrics,
        settings={name: value for section in sections.values() for name, value in section.items()},
        starts=read_lines(folder / run_files.STARTS),
        answers=read_lines(folder / run_files.ANSWERS),
        needles=read_lines(folder / run_files.NEEDLES),
        router_loads=read_lines(folder / run_files.ROUTER_LOAD),
        quarantine=read_lines(folder / run_files.QUARANTINE),
        warnings=read_warnings(folder / run_files.LOG),
    )


def read_lines(path: Path) -> list[Row]:
    """The objects of a file of JSON lines; a last line that is still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
