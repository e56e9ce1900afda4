"""Where a run stands: its phase, its step, its time, and what it has cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints
from hunyuan_train.config.run_files import METRICS
from hunyuan_train.launcher.job.status import RUNNING, TryStatus
from hunyuan_train.report.record import RunRecord

Phase = Literal["starting", "running", "done", "stopped", "failed", "lost", "unknown"]

LOST_SECONDS = 60.0  # without a sign of a launcher that gives one every second
QUIET_SECONDS = 600.0  # without a line of metrics, where no launcher gives signs
RECENT_LINES = 50  # that tell how fast a run is now
SECONDS_PER_HOUR = 3600
TIME_FORMAT = "%Y-%m-%d %H:%M:%S %z"  # of starts.jsonl


@dataclass(frozen=True, slots=True)
class RunState:
    """What a page says about a run before anything else. Times are seconds since 1970."""

    phase: Phase
    doing: str  # in words: training, evaluating, saving, ...
    why: str  # it ended, where that needs words
    step: int | None
    total_steps: int | None
    seconds_left: float | None
    started: float | None
    ended: float | None  # None while it goes on
    last_sign: float | None
    seconds: float | None  # that ranks were up, over all tries
    process_hours: float | None  # on GPUs: GPU hours
    is_on_gpu: bool
    num_tries: int

    @property
    def is_going_on(self) -> bool:
        """Whether more is to come."""
        return self.phase in ("starting", "running")

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)


def find_state(run: RunRecord, now: float) -> RunState:
    """Where a run stands at a moment.

    Args:
        now: seconds since 1970.
    """
    total = next((row["total_steps"] for row in reversed(run.starts.rows)
                  if row.get("total_steps")), None)  # fmt: skip
    last_line = _last_line_time(run)
    starts = [_read_time(row["time"]) for row in run.starts.rows]
    known_starts = [one for one in starts if one is not None]
    tries = run.status.tries if run.status else []
    phase, doing, why = _find_phase(run, now, last_line, total)
    is_going_on = phase in ("starting", "running")
    step = run.last_step if is_going_on or phase == "done" else _find_last_step(run)
    signs = [last_line, run.status.updated if run.status else None]
    last_sign = max((one for one in signs if one is not None), default=None)
    begun = [one.started for one in tries] + known_starts
    seconds, process_seconds = _add_up(tries, known_starts, run, last_sign, now, is_going_on)
    return RunState(
        phase=phase,
        doing=doing,
        why=why,
        step=step,
        total_steps=total,
        seconds_left=_time_left(run, step, total) if is_going_on else None,
        started=min(begun, default=None),
        ended=None if is_going_on else (tries[-1].ended if tries else None) or last_sign,
        last_sign=last_sign,
        seconds=seconds,
        process_hours=None if process_seconds is None else process_seconds / SECONDS_PER_HOUR,
        is_on_gpu=bool(run.starts.rows) and run.starts.rows[-1]["device"] != "CPU",
        num_tries=len(tries) or len(run.starts.rows),
    )


def _find_phase(
    run: RunRecord, now: float, last_line: float | None, total: int | None
) -> tuple[Phase, str, str]:
    """The phase, what is being done, and why it ended."""
    if run.is_complete:
        return "done", "", ""
    if run.status and run.status.tries:
        last = run.status.tries[-1]
        if last.outcome == RUNNING:
            if now - run.status.updated > LOST_SECONDS:
                why = (
                    f"its launcher on {run.status.launcher} does not answer: it was killed, or the "
                    "machine is down. Start it again with --resume_from_checkpoint auto"
                )
                return "lost", "", why
            doing = next((host.doing for host in run.status.hosts if not host.is_over), "starting")
            return ("starting" if doing == "starting" else "running"), doing, ""
        if last.outcome == "done":
            return "done", "", ""
        return ("stopped" if last.outcome == "stopped" else "failed"), "", last.words
    if total is not None and run.last_step is not None and run.last_step >= total:
        return "done", "", ""
    if last_line is None:
        return "unknown", "", ""
    if now - last_line > QUIET_SECONDS:
        return "unknown", "", "it has written nothing since, and no launcher reports on it"
    return "running", "training", ""


def _find_last_step(run: RunRecord) -> int | None:
    """The last step of a run that ended early: it may lie behind the last one that was logged."""
    hosts = run.status.hosts if run.status else []
    steps = [one.step for one in hosts if one.step is not None]
    known = [min(steps, default=None), run.last_step]
    known += map(checkpoint_step, list_checkpoints(run.folder)[-1:])
    return max((one for one in known if one is not None), default=None)


def _last_line_time(run: RunRecord) -> float | None:
    """When the last line of metrics was written: as it says, or else as the file does."""
    noted = run.last("time")
    if noted is not None and np.isfinite(noted):
        return noted
    return modified_at(run.folder / METRICS) if run.last_step is not None else None


def modified_at(path: Path) -> float | None:
    """When a file was last written to; None where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _read_time(text: str) -> float | None:
    try:
        return datetime.strptime(text, TIME_FORMAT).timestamp()
    except ValueError:
        return None


def _add_up(
    tries: Sequence[TryStatus],
    starts: Sequence[float],
    run: RunRecord,
    last_sign: float | None,
    now: float,
    is_going_on: bool,
) -> tuple[float | None, float | None]:
    """Seconds that ranks were up, and the same times their number; None where it is unknown."""
    # The end of a try that nobody noted is no later than the next one's beginning.
    following = [*(one.started for one in tries[1:]), now if is_going_on else last_sign]
    spans = [
        (one.started, one.ended or until, one.num_processes)
        for one, until in zip(tries, following, strict=False)
    ]
    if not tries:  # under a torchrun of the user's
        ends = [*starts[1:], now if is_going_on else last_sign]
        numbers = [row["num_processes"] for row in run.starts.rows]
        spans = list(zip(starts, ends, numbers, strict=False))
    known = [(max(0.0, end - begun), number) for begun, end, number in spans if end is not None]
    if not known:
        return None, None
    return sum(one for one, _ in known), sum(seconds * number for seconds, number in known)


def _time_left(run: RunRecord, step: int | None, total: int | None) -> float | None:
    """By the clock between recent lines, evaluations and saves included; else by their steps."""
    if total is None or step is None:
        return None
    columns = run.metrics.columns
    steps, times = columns.series("time")
    recent_steps, recent = steps[-RECENT_LINES:], times[-RECENT_LINES:]
    begun = _read_time(run.starts.rows[-1]["time"]) if run.starts.rows else None
    if begun is not None:  # a break before a resume is no speed
        is_of_this_start = recent >= begun
        recent_steps, recent = recent_steps[is_of_this_start], recent[is_of_this_start]
    if len(recent) > 1 and recent_steps[-1] > recent_steps[0] and np.isfinite(recent).all():
        each = (recent[-1] - recent[0]) / (recent_steps[-1] - recent_steps[0])
        return float(max(0, total - step) * each)
    seconds = columns.series("step_seconds")[1][-RECENT_LINES:]
    seconds = seconds[np.isfinite(seconds)]
    return float(max(0, total - step) * median(seconds)) if len(seconds) else None
