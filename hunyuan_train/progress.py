"""Shows how far work with many bytes has come, where it takes more than a moment.

Every rank calls it: only rank 0's console is a terminal, and the log shows rank 0's lines (log.py).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hunyuan_train.log import console

logger = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal
# Who is to know that long work goes on, besides the screen: a rank tells its node's agent.
Listener = Callable[[], None]
_listeners: list[Listener] = []


def listen_to_progress(listener: Listener) -> None:
    """Have a function called, from any thread, whenever a part of long work is done."""
    _listeners.append(listener)


def tell_progress() -> None:
    """Say that a part of long work is done: bytes, a batch of an evaluation, a token."""
    for listener in _listeners:
        listener()


@contextmanager
def show_progress(title: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the bytes just done; after a while a bar shows, or lines do.

    Args:
        title: what is done, such as "merging".
        num_bytes: all of them.
    """
    started = shown = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    bar.add_task(title, total=num_bytes)
    [task] = bar.tasks

    def advance(num_done: int) -> None:
        nonlocal shown
        tell_progress()
        bar.advance(task.id, num_done)
        now = time.monotonic()
        if now - started < QUIET_SECONDS:
            return
        if console.is_terminal:
            bar.start()  # does nothing where it has begun
        elif now - shown > SECONDS_BETWEEN_LINES:
            shown = now
            logger.info("%s: %.1f of %.1f GB", title, task.completed / 1e9, num_bytes / 1e9)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
    seconds = time.monotonic() - started
    if seconds > QUIET_SECONDS:
        logger.info("%s: %.1f GB in %.0f s", title, task.completed / 1e9, seconds)
