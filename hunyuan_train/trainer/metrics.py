"""Where numbers go: metrics.jsonl always, wandb and TensorBoard when asked.

Every rank has a `MetricsLog`; those of other ranks than the first have neither file nor tracker. A
resumed run continues the same file from the step it resumes at.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hunyuan_train.config.rules.logs import tracker_names
from hunyuan_train.json_lines import Lines, Numbers, as_json_numbers

logger = logging.getLogger(__name__)

WANDB_RUN_ID = "wandb_run_id"
INIT_SECONDS = 30  # for its server to answer
HEAT_MAP = "router_load.png"


class Tracker(Protocol):
    """An experiment tracker."""

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        ...

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Record a table; all rows have the same keys."""
        ...

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a PNG file."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Send a message to whoever follows the run."""
        ...

    def finish(self) -> None:
        """Flush and close."""
        ...

    def notes(self) -> dict[str, str]:
        """What a later process needs to go on with the same run."""
        ...


class WandbTracker:
    """Weights & Biases; goes offline when it cannot reach its server, and never stops a run."""

    def __init__(
        self, *, run_name: str, folder: Path, settings: dict[str, Any], run_id: str | None
    ) -> None:
        import wandb

        self.wandb = wandb
        options: dict[str, Any] = {
            "name": run_name,
            "dir": folder,
            "config": settings,
            "id": run_id,
            # Without `silent` it asks for a key on the terminal.
            "settings": wandb.Settings(silent=True, init_timeout=INIT_SECONDS),
        }
        wandb.setup(settings=wandb.Settings(silent=True))
        try:
            self.run = wandb.init(**options, resume="allow")
        except Exception as error:  # noqa: BLE001  nothing that happens there may stop a run
            logger.warning("wandb is not reachable (%s); logging offline", error)
            self.run = wandb.init(**options, mode="offline")
        # wandb drops what is logged for an earlier step of its own, as a resumed run does; so its
        # count is left alone, and ours is a number that charts are drawn over.
        self.run.define_metric("*", step_metric="step")

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        self.run.log({"step": step, **numbers})

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Record a table; all rows have the same keys."""
        table = self.wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.run.log({"step": step, name: table})

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a PNG file."""
        self.run.log({"step": step, name: self.wandb.Image(str(path))})

    def alert(self, title: str, text: str) -> None:
        """Send a message to whoever follows the run."""
        self.run.alert(title=title, text=text)

    def finish(self) -> None:
        """Flush and close."""
        where = self.run.url or f"`wandb sync {Path(self.run.dir).parent}`"
        self.run.finish()
        logger.info("wandb: %s", where)

    def notes(self) -> dict[str, str]:
        """By which id a later process continues the same run."""
        return {WANDB_RUN_ID: str(self.run.id)}


class TensorBoardTracker:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("settings", f"```\n{json.dumps(settings, indent=1, default=str)}\n```")

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Record a table as text."""
        text = "\n\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows)
        self.writer.add_text(name, f"```\n{text}\n```", step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a PNG file: [height, width, 4] once it is read."""
        from matplotlib import image

        self.writer.add_image(name, image.imread(path), step, dataformats="HWC")

    def alert(self, title: str, text: str) -> None:
        """Record it as text: nobody can be told."""
        self.writer.add_text(title, text)

    def finish(self) -> None:
        """Flush and close."""
        self.writer.close()

    def notes(self) -> dict[str, str]:
        """Nothing: files of several processes are read as one run."""
        return {}


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
    needles: Lines  # what was found in long texts
    batches: Lines  # what each rank trained on
    router_load: Lines
    quarantine: Lines  # bad steps
    starts: Lines

    def flush(self) -> None:
        """Write what has waited for room, and wait until the disk has it: a checkpoint comes."""
        others = (self.answers, self.needles, self.batches, self.router_load, self.quarantine)
        for lines in (self.metrics.lines, *others, self.starts):
            lines.flush()
            lines.sync()

    def forget_after(self, step: int) -> None:
        """Drop what belongs to steps past one that the run begins at or goes back to."""
        for log in (self.metrics, self.answers, self.needles, self.batches):
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
    names = tracker_names(report_to)
    trackers: list[Tracker] = []
    if "wandb" in names:
        run_id = notes.get(WANDB_RUN_ID)
        trackers.append(
            WandbTracker(run_name=run_name, folder=output_dir, settings=settings, run_id=run_id)
        )
    if "tensorboard" in names:
        trackers.append(TensorBoardTracker(output_dir, settings))
    return MetricsLog(output_dir, lines, trackers)
