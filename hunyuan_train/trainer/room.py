"""What a run has trained stays in memory until the disk takes it, or nobody waits any longer."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from hunyuan_train.log import SHARED
from hunyuan_train.progress import tell_progress

logger = logging.getLogger(__name__)

TRY_SECONDS = 10.0
POLL_SECONDS = 1.0
TRIES_BETWEEN_REMINDERS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a run waits, at its end, for a disk that takes nothing."""

    minutes: float
    is_asked_to_end: Callable[[], bool]  # the same answer on every rank
    setting: str = "wait_for_room_minutes"  # which says so

    @property
    def num_tries(self) -> int:
        """Tries after the first: a number, because the clocks of ranks differ."""
        return round(60 * self.minutes / TRY_SECONDS)


def write_at_last(attempt: Callable[[], str | None], what: str, patience: Patience) -> str | None:
    """Write something that is not to be lost, again and again until it works.

    Called by every rank alike.

    Args:
        attempt: says what went wrong, the same on every rank; None once all is written.
        what: is written, such as "the checkpoint of step 120".
        patience: how long to go on.

    Returns:
        what went wrong in the last try; None: it is written.
    """
    fault = attempt()
    for number in range(patience.num_tries):
        if fault is None:
            break
        if number % TRIES_BETWEEN_REMINDERS == 0:
            logger.warning(
                "NOT SAVED: %s: %s. It is kept in memory; make room, and it is written at once. "
                "The run waits for %.3g minutes (--%s)",
                *(what, fault, patience.minutes - number * TRY_SECONDS / 60, patience.setting),
                extra=SHARED,
            )
        _pause()
        is_last = patience.is_asked_to_end()
        fault = attempt()  # one more in any case: room may have been made during the pause
        if is_last:
            break
    return fault


def _pause() -> None:
    """Wait for the next try, and tell the agent that this is no hang."""
    until = time.monotonic() + TRY_SECONDS
    while time.monotonic() < until:
        tell_progress()
        time.sleep(min(POLL_SECONDS, TRY_SECONDS))
