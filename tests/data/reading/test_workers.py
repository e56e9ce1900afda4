import gc
import multiprocessing
import os
import signal
import time
from itertools import count
from pathlib import Path

import pytest

from hunyuan_train.data.reading import workers
from hunyuan_train.data.reading.workers import count_workers, map_in_order
from hunyuan_train.errors import DataError


def _square(number):
    return number * number


def _die(number):
    if multiprocessing.parent_process():  # not the one that runs this test
        os.kill(os.getpid(), signal.SIGKILL)


def _fail(number):
    raise DataError(f"number {number}")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order(num_workers):
    numbers = range(100)
    results = list(map_in_order(_square, numbers, num_workers=num_workers))
    assert results == [_square(number) for number in numbers]
    assert gc.isenabled()


def test_few_items_are_taken_ahead_of_the_results():
    taken = []

    def numbers():
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_in_order(_square, numbers(), num_workers=2)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + workers.CHUNKS_AHEAD + workers.RESULTS_AHEAD + 1
    results.close()


def test_a_process_that_dies_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match="set preprocessing_num_workers to fewer"):
        list(map_in_order(_die, range(4), num_workers=2))


def test_an_error_in_a_process_reaches_the_caller():
    with pytest.raises(DataError, match="number 0"):
        list(map_in_order(_fail, range(4), num_workers=2))


def _fail_here(number):
    if multiprocessing.parent_process():
        time.sleep(0.2)
        return number
    raise DataError(f"number {number}")


def test_an_error_of_our_own_is_told_behind_the_results_before_it():
    results = map_in_order(_fail_here, range(100), num_workers=2)
    sent = range(workers.CHUNKS_AHEAD)
    assert [next(results) for _ in sent] == list(sent)
    with pytest.raises(DataError, match=f"number {len(sent)}"):
        next(results)


def _work_shortly(number):
    time.sleep(0.02)
    return os.getpid()


def test_we_work_too_and_more_while_the_others_start():
    pids = list(map_in_order(_work_shortly, range(60), num_workers=2))
    others = set(pids) - {os.getpid()}
    assert len(others) == 1
    # The other process takes longer to start than what it was sent takes us.
    assert pids[: workers.CHUNKS_AHEAD] == [*others] * workers.CHUNKS_AHEAD
    started = pids.index(*others, workers.CHUNKS_AHEAD)
    assert started > 3 * workers.CHUNKS_AHEAD
    assert os.getpid() in pids[started:]


def _is_running(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def _name_self(_):
    return os.getpid()


def _work_forever(connection):
    for process in map_in_order(_name_self, count(), num_workers=2):
        connection.send(process)
        time.sleep(0.01)


def test_processes_end_with_the_one_that_started_them_also_when_it_is_killed():
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=_work_forever, args=(sender,))
    parent.start()
    processes = {receiver.recv() for _ in range(50)}
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while any(map(_is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(processes - {parent.pid}) == 1
    assert [process for process in processes if _is_running(process)] == []


def test_little_input_is_not_worth_a_process():
    assert count_workers(0, 1000) == 1
    assert count_workers(8, 10 * workers.BYTES_PER_WORKER) == 8
    assert 1 <= count_workers(0, 1 << 40) <= len(os.sched_getaffinity(0))
