"""A progress bar for work that takes more than a moment."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

QUIET_SECONDS = 2.0


@contextmanager
def show_progress(title: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the bytes just done; a bar shows on a terminal after a while."""
    started = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
    task = bar.add_task(title, total=num_bytes)
    is_shown = False

    def advance(num_done: int) -> None:
        nonlocal is_shown
        if not is_shown and bar.console.is_terminal and time.monotonic() - started > QUIET_SECONDS:
            bar.start()
            is_shown = True
        bar.advance(task, num_done)

    try:
        yield advance
    finally:
        if is_shown:
            bar.stop()
