"""Where numbers go: metrics.jsonl always, wandb when asked.

Only rank 0 owns a `MetricsLog`; a resumed run continues the same file from the step it resumes at.
"""

import json
import logging
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

Numbers = dict[str, float | int]


class Tracker(Protocol):
    """An experiment tracker."""

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        ...

    def finish(self) -> None:
        """Flush and close."""
        ...


class WandbTracker:
    """Weights & Biases; goes offline when it cannot reach its server, and never stops a run."""

    def __init__(self, *, run_name: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb  # noqa: PLC0415  (optional package: rule 14)

        try:
            self.run = wandb.init(name=run_name, dir=folder, config=settings, resume="allow")
        except wandb.errors.Error as error:
            logger.warning("wandb is not reachable (%s); logging offline, see `wandb sync`", error)
            self.run = wandb.init(name=run_name, dir=folder, config=settings, mode="offline")

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        """Flush and close."""
        self.run.finish()


class MetricsLog:
    """Appends one JSON object per logged step and passes it on to the trackers."""

    def __init__(self, path: Path, trackers: list[Tracker]) -> None:
        self.path = path
        self.trackers = trackers

    def forget_after(self, step: int) -> None:
        """Drop lines past the step a run resumes at: those steps are about to be done again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.path.write_text("".join(kept), encoding="utf-8")

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for tracker in self.trackers:
            tracker.log(numbers, step)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.finish()


def open_metrics(
    output_dir: Path, *, report_to: str, run_name: str, settings: dict[str, Any]
) -> MetricsLog:
    """Open metrics.jsonl in the run's folder and the trackers of `--report_to`."""
    trackers: list[Tracker] = []
    if report_to == "wandb":
        trackers.append(WandbTracker(run_name=run_name, folder=output_dir, settings=settings))
    return MetricsLog(output_dir / "metrics.jsonl", trackers)
