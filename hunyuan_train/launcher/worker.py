"""What a process knows when torchrun started it, and how it tells the launcher why it ended."""

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.launcher.signs import node_folder

LAST_WORDS = ".words"  # ending of the file in which a failing rank leaves them
# A folder in which each rank leaves a mark at its end, where the launcher's word cannot be trusted.
MARKS_VARIABLE = "HUNYUAN_TRAIN_MARKS"


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


def count_started() -> int:
    """Processes that torchrun started on all machines."""
    return int(os.environ["WORLD_SIZE"])


def report_failure(text: str) -> None:
    """Leave this rank's last words to the launcher, or say them where there is none.

    A failing rank takes others with it, whose words would hide the cause: the launcher prints only
    those that were written first, and prints them last.
    """
    folder = node_folder()
    if folder and is_worker():
        (folder / f"{os.environ['RANK']}{LAST_WORDS}").write_text(text, encoding="utf-8")
    else:
        print(text, file=sys.stderr)  # noqa: T201 the last words, after logging has ended


def mark_done() -> None:
    """Say that this rank has come to its end, where somebody counts."""
    folder = os.environ.get(MARKS_VARIABLE)
    if folder:
        Path(folder, f"rank-{os.environ['RANK']}.done").touch()


def count_marks(folder: Path) -> int:
    """Ranks that have come to their end."""
    return len(list(folder.glob("rank-*.done")))


def report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that leaves the traceback to the launcher."""
    lines = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    report_failure(f"rank {os.environ['RANK']} failed:\n{lines}")
