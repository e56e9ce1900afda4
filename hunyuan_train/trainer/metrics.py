"""Where numbers go: metrics.jsonl always, experiment trackers when asked (`trackers.py`).

Every rank has a `MetricsLog`; those of other ranks than the first have neither file nor tracker. A
resumed run continues the same file from the step it resumes at.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hunyuan_train.config.rules.logs import tracker_names
from hunyuan_train.json_lines import Lines, Numbers, as_json_numbers
from hunyuan_train.trainer.trackers import Tracker, open_trackers

logger = logging.getLogger(__name__)

HEAT_MAP = "router_load.png"


class MetricsLog:
    """Appends one JSON object per logged step and passes it on to the trackers."""

    def __init__(self, folder: Path, lines: Lines, trackers: Sequence[Tracker]) -> None:
        self.folder = folder  # of the run
        self.lines = lines
        self.trackers = list(trackers)

    def forget_after(self, step: int) -> None:
        """Drop what is past the step a run resumes at."""
        self.lines.forget_after(step)

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step; null stands for NaN and infinity, which JSON lacks."""
        now = round(time.time(), 3)
        self.lines.append({"step": step, "time": now, **as_json_numbers(numbers)})
        self._tell(lambda tracker: tracker.log(numbers, step))

    def amend(self, numbers: Numbers, step: int) -> None:
        """Record numbers of the last step that were known only later."""
        self.lines.amend({"step": step, **numbers})
        self._tell(lambda tracker: tracker.log(numbers, step))

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Pass a table on; its rows are kept elsewhere."""
        self._tell(lambda tracker: tracker.log_table(name, rows, step))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Pass an image on."""
        self._tell(lambda tracker: tracker.log_image(name, path, step))

    def show_load(self, shares: list[list[float]], step: int) -> None:
        """Pass the load of experts on as a picture, where there is a tracker to look at it."""
        if self.trackers:
            from hunyuan_train.trainer.heat_map import draw_heat_map

            path = self.folder / HEAT_MAP
            draw_heat_map(path, shares, step=step)
            self.log_image("router_load", path, step)

    def alert(self, title: str, text: str) -> None:
        """Pass a warning on; it is in the log already."""
        self._tell(lambda tracker: tracker.alert(title, text))

    def finish(self) -> None:
        """Close the trackers."""
        self._tell(lambda tracker: tracker.finish())

    def notes(self) -> dict[str, str]:
        """What a later process needs to go on with the same runs of the trackers."""
        notes: dict[str, str] = {}
        for tracker in self.trackers:
            notes |= tracker.notes()
        return notes

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        """Do something with every tracker; one that fails is left alone from then on."""
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001  its server, service or disk is gone
                name = type(tracker).__name__
                logger.warning("%s failed (%r); the run goes on without it", name, error)
                self.trackers.remove(tracker)


@dataclass(frozen=True, kw_only=True, slots=True)
class Logs:
    """The run's files of one object a line. What this rank does not write goes nowhere."""

    metrics: MetricsLog
    answers: Lines  # to held-out questions
    pairs: Lines  # held out, with rewards
    needles: Lines  # what was found in long texts
    batches: Lines  # what each rank trained on
    router_load: Lines
    quarantine: Lines  # bad steps
    starts: Lines

    def flush(self) -> None:
        """Write what has waited for room, and wait until the disk has it: a checkpoint comes."""
        others = (self.answers, self.pairs, self.needles, self.batches, self.router_load)
        for lines in (self.metrics.lines, *others, self.quarantine, self.starts):
            lines.flush()
            lines.sync()

    def forget_after(self, step: int) -> None:
        """Drop what belongs to steps past one that the run begins at or goes back to."""
        for log in (self.metrics, self.answers, self.pairs, self.needles, self.batches):
            log.forget_after(step)


def open_metrics(
    output_dir: Path,
    lines: Lines,
    *,
    report_to: str,
    run_name: str,
    settings: dict[str, Any],
    notes: Mapping[str, str],
) -> MetricsLog:
    """A log with the trackers of `--report_to`.

    Args:
        output_dir: of the run.
        lines: metrics.jsonl.
        report_to: which trackers, comma-separated.
        run_name: in the trackers.
        settings: shown there.
        notes: those of an earlier process of the same run, if there was one.
    """
    trackers = open_trackers(
        tracker_names(report_to),
        folder=output_dir,
        run_name=run_name,
        settings=settings,
        notes=notes,
    )
    return MetricsLog(output_dir, lines, trackers)
