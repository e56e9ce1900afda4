"""Where numbers go: metrics.jsonl always, wandb when asked.

Only rank 0 owns a `MetricsLog`; a resumed run continues the same file from the step it resumes at.
"""

import json
import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Numbers = dict[str, float | int]


class WandbTracker:
    """Weights & Biases; goes offline when it cannot reach its server, and never stops a run."""

    def __init__(
        self, *, run_name: str, folder: Path, settings: dict[str, Any], run_id: str | None
    ) -> None:
        import wandb  # noqa: PLC0415  (optional package: rule 14)

        options: dict[str, Any] = {
            "name": run_name,
            "dir": folder,
            "config": settings,
            "id": run_id,
        }
        try:
            self.run = wandb.init(**options, resume="allow")
        except wandb.errors.Error as error:
            logger.warning("wandb is not reachable (%s); logging offline, see `wandb sync`", error)
            self.run = wandb.init(**options, mode="offline")
        # wandb drops what is logged for an earlier step of its own, as a resumed run does; so its
        # count is left alone, and ours is a number that charts are drawn over.
        self.run.define_metric("*", step_metric="step")

    @property
    def run_id(self) -> str:
        """By which a later process continues the same run."""
        return str(self.run.id)

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        self.run.log({"step": step, **numbers})

    def alert(self, title: str, text: str) -> None:
        """Let the tracker send a message to whoever follows the run."""
        self.run.alert(title=title, text=text)

    def finish(self) -> None:
        """Flush and close."""
        self.run.finish()


class JsonLines:
    """A file of one JSON object per step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, Any]) -> None:
        """Write one object, which has a `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop lines past the step a run resumes at: those steps are about to be done again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.path.write_text("".join(kept), encoding="utf-8")


class MetricsLog:
    """Appends one JSON object per logged step and passes it on to the tracker."""

    def __init__(self, path: Path, tracker: WandbTracker | None) -> None:
        self.lines = JsonLines(path)
        self.tracker = tracker

    def forget_after(self, step: int) -> None:
        """Drop what is past the step a run resumes at."""
        self.lines.forget_after(step)

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step; null stands for NaN and infinity, which JSON lacks."""
        known = {name: value if isfinite(value) else None for name, value in numbers.items()}
        self.lines.append({"step": step, **known})
        if self.tracker:
            self.tracker.log(numbers, step)

    def alert(self, title: str, text: str) -> None:
        """Pass a warning on; it is in the log already."""
        if self.tracker:
            self.tracker.alert(title, text)

    def finish(self) -> None:
        """Close the tracker."""
        if self.tracker:
            self.tracker.finish()

    def notes(self) -> dict[str, str]:
        """What a later process needs to go on with the same run of the tracker."""
        return {"wandb_run_id": self.tracker.run_id} if self.tracker else {}


def open_metrics(
    output_dir: Path,
    *,
    report_to: str,
    run_name: str,
    settings: dict[str, Any],
    notes: Mapping[str, str],
) -> MetricsLog:
    """Open metrics.jsonl in the run's folder and the tracker of `--report_to`.

    Args:
        output_dir: of the run.
        report_to: which tracker.
        run_name: in the tracker.
        settings: shown there.
        notes: those of an earlier process of the same run, if there was one.
    """
    tracker = None
    if report_to == "wandb":
        run_id = notes.get("wandb_run_id")
        tracker = WandbTracker(
            run_name=run_name, folder=output_dir, settings=settings, run_id=run_id
        )
    return MetricsLog(output_dir / "metrics.jsonl", tracker)
