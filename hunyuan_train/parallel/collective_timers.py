"""How long the engine's collectives take, measured at the one object that all of them pass through.

On a GPU time is that of the stream that a collective holds up: the computing one for tokens on
their way to experts, one of its own for weights gathered beside computing. So it is no further part
of a step, but lies within the others. Our own few sums over ranks are not among them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from deepspeed.comm import comm

# Of the engine's communication object, which has no hook for this. Its own logger waits for the GPU
# after each collective, and so changes what it measures.
COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_to_all", "all_to_all_single"),
    *("all_gather", "all_gather_coalesced", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor"),
)

Timed = Callable[[], AbstractContextManager[None]]


@contextmanager
def timing_collectives(timed: Timed) -> Iterator[None]:
    """Measure every collective that the engine begins meanwhile.

    Args:
        timed: a context that measures what happens in it.
    """
    backend = comm.cdb
    for name in COLLECTIVES:
        setattr(backend, name, _time(getattr(backend, name), timed))  # on this object alone
    try:
        yield
    finally:
        for name in COLLECTIVES:
            delattr(backend, name)  # the class's own shows again


def _time(collective: Callable[..., Any], timed: Timed) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  whatever the engine passes
        with timed():
            work = collective(*arguments, **named)
        return None if work is None else TimedWork(work, timed)

    return run


class TimedWork:
    """A collective that goes on beside computing; waiting for it is measured too."""

    def __init__(self, work: Any, timed: Timed) -> None:  # noqa: ANN401  torch's, or the engine's
        self._work = work
        self._timed = timed

    def wait(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Wait for its end."""
        with self._timed():
            return self._work.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._work, name)
