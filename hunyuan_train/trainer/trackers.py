"""Experiment trackers: wandb, TensorBoard, SwanLab and MLflow behind one interface.

Their own clients are imported where they are asked for. None of them may stop a run or ask on the
terminal; a resumed run goes on in the same run of a tracker.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hunyuan_train.json_lines import Numbers

logger = logging.getLogger(__name__)

WANDB_RUN_ID, SWANLAB_RUN_ID, MLFLOW_RUN_ID = "wandb_run_id", "swanlab_run_id", "mlflow_run_id"
INIT_SECONDS = 30  # for wandb's server to answer
PROJECT = "hunyuan-train"  # in SwanLab and MLflow, where their own variables name no other
MLFLOW_BATCH = 100  # parameters that MLflow takes at once
MLFLOW_MOST_CHARACTERS = 6000  # of a parameter


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


class SwanLabTracker:
    """SwanLab; goes offline without a key or a server, and never stops a run."""

    def __init__(
        self, *, run_name: str, folder: Path, settings: dict[str, Any], run_id: str | None
    ) -> None:
        import swanlab

        self.swanlab = swanlab
        self.folder = folder / "swanlab"
        self.folder.mkdir(exist_ok=True)
        options: dict[str, Any] = {
            "project": swanlab.Settings().project.name or PROJECT,
            "name": run_name,
            "log_dir": str(self.folder),
            "config": settings,
            "id": run_id,
            "resume": "allow",
            # Else it asks for a key on the terminal.
            "settings": swanlab.Settings(interactive=False),
        }
        try:
            self.run = swanlab.init(**options)
        except Exception as error:  # noqa: BLE001  nothing that happens there may stop a run
            logger.warning("SwanLab is not reachable (%s); logging offline", error)
            self.run = swanlab.init(**options, mode="offline")

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        self.run.log(dict(numbers), step=step)

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Record a table as text."""
        text = json.dumps(list(rows), ensure_ascii=False, indent=1)
        self.run.log({name: self.swanlab.Text(text)}, step=step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a PNG file."""
        self.run.log({name: self.swanlab.Image(str(path))}, step=step)

    def alert(self, title: str, text: str) -> None:
        """Nothing: the log has it, and SwanLab tells people only by services of their own."""

    def finish(self) -> None:
        """Flush and close."""
        self.run.finish()
        logger.info("SwanLab: %s; what is offline goes up by `swanlab sync`", self.folder)

    def notes(self) -> dict[str, str]:
        """By which id a later process continues the same run."""
        return {SWANLAB_RUN_ID: str(self.run.id)}


class MlflowTracker:
    """MLflow, at MLFLOW_TRACKING_URI; without it in mlflow.db of the run's folder."""

    def __init__(
        self, *, run_name: str, folder: Path, settings: dict[str, Any], run_id: str | None
    ) -> None:
        import mlflow
        from mlflow import environment_variables as variables
        from mlflow.entities import Metric, Param

        # A server that is gone is asked for seconds, and not for minutes, before it is given up.
        for variable, value in (
            (variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 2),
            (variables.MLFLOW_HTTP_REQUEST_TIMEOUT, 10),
        ):
            if not variable.is_set():
                variable.set(value)
        self.metric = Metric
        local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.where = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else local
        self.client = mlflow.MlflowClient(self.where)
        if run_id is None:
            experiment = variables.MLFLOW_EXPERIMENT_NAME.get() or PROJECT
            place = None if self.where != local else (folder.resolve() / "mlartifacts").as_uri()
            run_id = self._create(run_name, experiment, place)
            values = [
                Param(name, str(value)[:MLFLOW_MOST_CHARACTERS]) for name, value in settings.items()
            ]
            for start in range(0, len(values), MLFLOW_BATCH):
                self.client.log_batch(run_id, params=values[start : start + MLFLOW_BATCH])
        else:
            self.client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def _create(self, run_name: str, experiment: str, place: str | None) -> str:
        """Start a run, in an experiment that is made where there is none, files at `place`."""
        found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            number = found.experiment_id
        else:
            number = self.client.create_experiment(experiment, artifact_location=place)
        return str(self.client.create_run(number, run_name=run_name).info.run_id)

    def log(self, numbers: Numbers, step: int) -> None:
        """Record numbers of one step."""
        now = int(1000 * time.time())
        metrics = [self.metric(name, value, now, step) for name, value in numbers.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Record a table as a JSON file."""
        self.client.log_dict(self.run_id, {"rows": list(rows)}, f"{name}/step-{step:06d}.json")

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a PNG file: the newest one of its name."""
        self.client.log_artifact(self.run_id, str(path), f"{name}/step-{step:06d}")

    def alert(self, title: str, text: str) -> None:
        """Record it as a tag of the run: nobody can be told."""
        self.client.set_tag(self.run_id, title, text)

    def finish(self) -> None:
        """Close the run."""
        self.client.set_terminated(self.run_id)
        logger.info("MLflow: run %s of %s", self.run_id, self.where)

    def notes(self) -> dict[str, str]:
        """By which id a later process continues the same run."""
        return {MLFLOW_RUN_ID: self.run_id}


def open_trackers(
    names: Sequence[str],
    *,
    folder: Path,
    run_name: str,
    settings: dict[str, Any],
    notes: Mapping[str, str],
) -> list[Tracker]:
    """Open trackers by name; one that cannot be opened is told and left out.

    Args:
        names: of `--report_to`.
        folder: of the run.
        run_name: in the trackers.
        settings: shown there.
        notes: those of an earlier process of the same run, if there was one.
    """
    openers: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker(
            run_name=run_name, folder=folder, settings=settings, run_id=notes.get(WANDB_RUN_ID)
        ),
        "tensorboard": lambda: TensorBoardTracker(folder, settings),
        "swanlab": lambda: SwanLabTracker(
            run_name=run_name, folder=folder, settings=settings, run_id=notes.get(SWANLAB_RUN_ID)
        ),
        "mlflow": lambda: MlflowTracker(
            run_name=run_name, folder=folder, settings=settings, run_id=notes.get(MLFLOW_RUN_ID)
        ),
    }
    trackers = []
    for name in names:
        try:
            trackers.append(openers[name]())
        except Exception as error:  # noqa: BLE001  its server, service or disk is gone
            logger.warning("%s cannot be opened (%r); the run goes on without it", name, error)
    return trackers
