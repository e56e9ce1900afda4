"""What a process knows when torchrun started it, and how it tells the launcher why it ended."""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from hunyuan_train.config.errors import ConfigError

# The launcher's folder for the last words of a failing rank; unset under a torchrun of the user's.
FAILURES_VARIABLE = "HUNYUAN_TRAIN_FAILURES"


def is_worker() -> bool:
    """Whether this process is one of the ranks that torchrun started."""
    return "RANK" in os.environ


def read_local_world_size() -> int:
    """How many ranks torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))


def check_num_processes(num_processes: int | str) -> None:
    """Refuse a config that counts other processes than torchrun started."""
    started = read_local_world_size()
    if num_processes not in ("auto", started):
        raise ConfigError(
            f"num_processes is {num_processes}, but torchrun started {started} on this machine; "
            "leave --num_processes out, or start train.py without torchrun"
        )


def report_failure(text: str) -> None:
    """Leave this rank's last words to the launcher, or say them where there is none.

    The launcher prints them after torchrun's own report, so that the cause is what stays on screen.
    """
    folder = os.environ.get(FAILURES_VARIABLE)
    if folder and is_worker():
        Path(folder, f"rank{os.environ['RANK']}.txt").write_text(text, encoding="utf-8")
    else:
        print(text, file=sys.stderr)  # noqa: T201 the last words, after logging has ended


def report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that leaves the traceback to the launcher."""
    report_failure("".join(traceback.format_exception(kind, error, trace)).rstrip())
