"""What a process knows when torchrun started it, and how it tells the launcher why it ended."""

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import RunConfig

# The launcher's folder for the last words of a failing rank; unset under a torchrun of the user's.
FAILURES_VARIABLE = "HUNYUAN_TRAIN_FAILURES"


def is_worker() -> bool:
    """Whether this process is one of the ranks that torchrun started."""
    return {"RANK", "LOCAL_RANK"} <= os.environ.keys()


def with_started_processes(config: RunConfig) -> RunConfig:
    """The config with the number of processes that torchrun started on this machine.

    Raises:
        ConfigError: it asks for another number.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if config.parallel.num_processes not in ("auto", started):
        raise ConfigError(
            f"num_processes is {config.parallel.num_processes}, but torchrun started {started} on "
            "this machine; leave --num_processes out, or start train.py without torchrun"
        )
    return replace(config, parallel=replace(config.parallel, num_processes=started))


def report_failure(text: str) -> None:
    """Leave this rank's last words to the launcher, or say them where there is none.

    A failing rank takes others with it, whose words would hide the cause: the launcher prints only
    those that were written first, and prints them last.
    """
    folder = os.environ.get(FAILURES_VARIABLE)
    if folder and is_worker():
        failure_file(folder, int(os.environ["LOCAL_RANK"])).write_text(text, encoding="utf-8")
    else:
        print(text, file=sys.stderr)  # noqa: T201 the last words, after logging has ended


def failure_file(folder: str, local_rank: int) -> Path:
    """Where a rank leaves its last words."""
    return Path(folder, f"{local_rank}.txt")


def report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that leaves the traceback to the launcher."""
    lines = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    report_failure(f"rank {os.environ['RANK']} failed:\n{lines}")
