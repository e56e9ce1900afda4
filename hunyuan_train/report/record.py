"""A run as its folder tells it, read without torch. Everything but the metrics may be missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.config import run_files
from hunyuan_train.errors import ConfigError
from hunyuan_train.json_file import read_bytes
from hunyuan_train.launcher.job.status import RunStatus, read_status_file
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.report.log_file import LogFile
from hunyuan_train.report.metric_table import MetricTable
from hunyuan_train.report.row_file import RowFile

MAX_SETTINGS_BYTES = 2**20


class RunRecord:
    """What one run has left so far. One thread reads on; others look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.name = folder.resolve().name
        self.metrics = MetricTable(folder)
        self.log = LogFile(folder)
        self.starts = RowFile(folder, run_files.STARTS)
        self.answers = RowFile(folder, run_files.ANSWERS)
        self.pairs = RowFile(folder, run_files.PAIRS)
        self.samples = RowFile(folder, run_files.SAMPLES)
        self.needles = RowFile(folder, run_files.NEEDLES)
        self.router_loads = RowFile(folder, run_files.ROUTER_LOAD)
        self.quarantine = RowFile(folder, run_files.QUARANTINE)
        self.status: RunStatus | None = None
        self.settings: dict[str, Any] = {}
        self.settings_fault: str | None = None
        self.is_complete = False  # whether the run itself says so
        self._settings_seen: tuple[int, int] | None = None

    def read_on(self) -> bool:
        """Read what is new: of the metrics and the log a part; say whether there may be more."""
        for file in self._row_files():
            file.read_all()
        self.status = read_status_file(self.folder)
        self._read_settings()
        has_more = self.metrics.read_on()
        return self.log.read_on() or has_more

    def _row_files(self) -> Iterator[RowFile]:
        yield from (self.starts, self.answers, self.samples, self.needles, self.router_loads)
        yield from (self.pairs, self.quarantine)

    def _read_settings(self) -> None:
        path = self.folder / run_files.CONFIG
        try:
            status = path.stat()
        except OSError:
            return
        seen = (status.st_mtime_ns, status.st_size)
        if seen == self._settings_seen:
            return
        self._settings_seen = seen
        try:
            self.settings, self.settings_fault = read_settings(path), None
        except ConfigError as error:
            self.settings_fault = str(error)

    @property
    def faults(self) -> list[str]:
        """Lines and files that are not as a run writes them, and are left out."""
        faults = list(self.metrics.faults)
        for file in self._row_files():
            faults += file.faults
        return faults + ([self.settings_fault] if self.settings_fault else [])

    @property
    def plan(self) -> dict[str, Any]:
        """What was foreseen at the last start; empty where that is not known."""
        rows = self.starts.rows
        plan: dict[str, Any] = (rows[-1].get("plan") or {}) if rows else {}
        return plan

    @property
    def last_step(self) -> int | None:
        """Of the last line of the metrics."""
        columns = self.metrics.columns
        return int(columns.steps[columns.num_rows - 1]) if columns.num_rows else None

    def last(self, name: str) -> float | None:
        """The latest value of a number, infinite where it was none; None where there is none."""
        return self.metrics.columns.last(name)


def read_run(folder: Path) -> RunRecord:
    """Read the whole folder of a run, also of one that is going on.

    Raises:
        ConfigError: it holds no metrics, or a file is damaged.
    """
    run = RunRecord(folder)
    while run.read_on():
        pass
    run.metrics.sample = None
    if run.faults:
        raise ConfigError(run.faults[0])
    if not run.metrics.read.num_rows:
        raise ConfigError(
            f"{folder} holds no {run_files.METRICS} with a logged step, so there is nothing to "
            "report; give the output_dir of a run, like runs/tiny"
        )
    return run


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run by name.

    Raises:
        ConfigError: the file holds something else.
    """
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
