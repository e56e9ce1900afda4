"""Runs a job until it is done: after a failure again, from the newest checkpoint.

Not inside torchrun, whose restarts find the addresses of dead ranks in their store and do not
survive the loss of the first host: everything is ended everywhere, and started anew.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.launcher.job.outcome import Outcome, is_restartable

BACK_OFF_SECONDS = 2.0  # before a restart; doubled each time without progress, up to a minute
MAX_BACK_OFF_SECONDS = 60.0

# One try of a run, from the config that it is given; knows its hosts and waits for them.
Try = Callable[[RunConfig], Outcome]


@dataclass(frozen=True, slots=True)
class History:
    """What the tries so far leave to decide by."""

    num_restarts: int = 0  # since the last new checkpoint
    newest: Path | None = None  # checkpoint, when the last try failed
    failed_step: int | None = None  # at which a process failed in the last try


def run_until_done(config: RunConfig, start: Try, console: Console) -> int:
    """Try until the run succeeds, is stopped, or nothing speaks for another try.

    Returns:
        the exit code of the last try.
    """
    output_dir = Path(config.train.output_dir)
    before = newest_checkpoint(output_dir)
    history = History(newest=before)
    number = 1
    while True:
        outcome = start(config)
        if outcome.reason == "done":
            return outcome.exit_code
        if outcome.words:
            console.print(outcome.words, markup=False, highlight=False, soft_wrap=True)
        write_report(output_dir, number, outcome)
        history, refusal = judge(config, history, outcome)
        if refusal is not None:
            if refusal:
                console.print(refusal, markup=False, highlight=False, soft_wrap=True)
            return outcome.exit_code
        if config.checkpoints.resume_from_checkpoint is None or history.newest != before:
            config = with_settings(config, resume_from_checkpoint="auto")
        wait_and_say(config, history, console)
        number += 1


def judge(config: RunConfig, history: History, outcome: Outcome) -> tuple[History, str | None]:
    """Decide about another try.

    Returns:
        the history with this try, and None for another try, or why there is none (may be empty).
    """
    limit = config.launch.max_restarts
    newest = newest_checkpoint(Path(config.train.output_dir))
    num_restarts = history.num_restarts if newest == history.newest else 0
    # The loss of a host says nothing about the step at which it came.
    failed_step = outcome.step if outcome.reason == "failed" and not outcome.lost else None
    after = History(num_restarts + 1, newest, failed_step)
    if not is_restartable(outcome) or not limit:
        return after, ""
    if failed_step is not None and failed_step == history.failed_step:
        return after, (
            f"not restarted: the run failed twice after step {failed_step}, so it is not the "
            "hardware; fix what the error above says"
        )
    if num_restarts >= limit:
        return after, f"not restarted: {limit} restarts (--max_restarts) led to no new checkpoint"
    return after, None


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    checkpoints = list_checkpoints(output_dir)
    return checkpoints[-1] if checkpoints else None


def wait_and_say(config: RunConfig, history: History, console: Console) -> None:
    """Say from where the run goes on, and leave whatever failed a moment to recover."""
    seconds = min(BACK_OFF_SECONDS * 2 ** (history.num_restarts - 1), MAX_BACK_OFF_SECONDS)
    where = history.newest.name if history.newest else "the beginning: there is no checkpoint yet"
    if config.checkpoints.resume_from_checkpoint != "auto":  # nothing newer than what was asked for
        where = str(config.checkpoints.resume_from_checkpoint)
    console.print(
        f"restart {history.num_restarts} of {config.launch.max_restarts} from {where}, in "
        f"{seconds:g} s",
        highlight=False,
    )
    time.sleep(seconds)


def write_report(output_dir: Path, number: int, outcome: Outcome) -> None:
    """Keep for programs why a try ended, where the disk takes it: the user has been told."""
    folder = output_dir / "log"
    report = asdict(outcome) | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    path = folder / f"failure-{number}.json"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
