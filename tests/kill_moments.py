"""Kills that come while the killed one works, however fast the machine is just then."""

import multiprocessing.process
import signal
import subprocess
import time
from collections.abc import Callable

Process = multiprocessing.process.BaseProcess | subprocess.Popen[bytes]
NUM_ATTEMPTS = 20
EARLIER = 0.7  # a kill that came too late is tried again after this part of its time


def kill_at_work(begin: Callable[[], Process], seconds: float) -> None:
    """Kill what `begin` starts; where it has ended by itself, begin again and come earlier.

    Args:
        begin: removes what a finished attempt left, and starts the next one.
        seconds: from its return to the kill; 0 is a kill that cannot come too late.
    """
    for _ in range(NUM_ATTEMPTS):
        process = begin()
        time.sleep(seconds)
        process.kill()
        code = end_of(process)
        if code == -signal.SIGKILL:
            return
        assert code == 0
        seconds *= EARLIER
    raise AssertionError("it ended by itself each time")


def end_of(process: Process) -> int | None:
    """Wait for a process.

    Returns:
        its exit code, negative for a signal.
    """
    if isinstance(process, subprocess.Popen):
        return process.wait()
    process.join()
    return process.exitcode
