"""Many chunks through one function, over processes, in order and with bounded memory."""

import atexit
import gc
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from hunyuan_train.errors import DataError

BYTES_PER_WORKER = 8 << 20  # below this, starting a process takes longer than what it saves
CHUNKS_AHEAD = 2  # per process: one that it works on and one that waits for it
RESULTS_AHEAD = 16  # made by us while an earlier one is still to come, as when processes start

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_workers(requested: int, num_bytes: int) -> int:
    """Processes worth starting for this much input; 0 requested means one per usable core."""
    num_cores = len(os.sched_getaffinity(0))
    return max(1, min(requested or num_cores, 1 + num_bytes // BYTES_PER_WORKER))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int
) -> Iterator[Result]:
    """Results in the order of the items, whatever the number of processes; we are one of them."""
    with _without_collector():
        if num_workers == 1:
            yield from map(function, items)
        else:
            yield from _share_work(function, items, num_others=num_workers - 1)


def _share_work(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_others: int
) -> Iterator[Result]:
    """Give other processes all that they take, and do the rest here instead of waiting for them.

    A process takes half a second of processor time to start. It is one fewer to start, and what
    waits for the others to be ready is done meanwhile.
    """
    most_sent = num_others * CHUNKS_AHEAD
    # Not fork: a training process has threads and device contexts that must not be copied.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(num_others, mp_context=context, initializer=_begin_work) as pool:
        try:
            for item in items:
                num_sent = sum([not one.done() for one in pending])
                is_here = num_sent >= most_sent
                pending.append(
                    _work_here(function, item) if is_here else pool.submit(function, item)
                )
                while pending and (pending[0].done() or len(pending) > most_sent + RESULTS_AHEAD):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenizes died, most often for want of memory; set "
                "preprocessing_num_workers to fewer"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _work_here(function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """A result of our own, or its error, which is told when the results before it have been."""
    future: Future[Result] = Future()
    try:
        future.set_result(function(item))
    except Exception as error:  # noqa: BLE001  # as an executor keeps it
        future.set_exception(error)
    return future


def _begin_work() -> None:
    gc.disable()
    # Taking a vocabulary apart takes a tenth of a second, for which our end need not wait.
    atexit.register(os._exit, 0)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End with the process that started us: one killed by SIGKILL can tell nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Records are trees, freed by counting references; looking for cycles takes a tenth longer."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
