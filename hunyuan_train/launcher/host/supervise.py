"""Runs a command with all it starts, and leaves nothing of it behind.

Each rank has a session of its own, so killing the process group of what started it does not
reach them. Linux hands orphans to the nearest "subreaper": with this process as theirs, every
process of the run stays below it and can be found.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = tuple(128 + number for number in FORWARDED)  # the exit codes after one of these
GRACE_SECONDS = 20.0  # for ranks to end by themselves after a signal, before they are killed
PRCTL = ctypes.CDLL(None).prctl  # found before any fork: another thread's lock stays in a child
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def run_supervised(
    command: Sequence[str], environment: Mapping[str, str], *, output: IO[str] | None = None
) -> int:
    """Run a command to its end, passing signals on, and return its exit code.

    The command shares our terminal but not our process group: Ctrl-C reaches us alone, and we ask
    it to end. A second signal, or the end of the grace time, kills everything.

    Args:
        output: a file for what it prints; default: our own stdout and stderr.
    """
    adopt_orphans()
    unrelated = list_children(os.getpid())
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=die_with_parent,
        stdout=output,
        stderr=output,
    )
    try:
        with _forwarding_signals(process) as received:
            while (exit_code := _poll(process)) is None:
                if received and time.monotonic() > received[0][1] + GRACE_SECONDS:
                    break
    finally:
        kill_descendants(spare=unrelated)
        process.wait()
    if received:
        return 128 + received[0][0]
    return exit_code if exit_code is not None and exit_code >= 0 else 128 + signal.SIGKILL


def kill_descendants(*, spare: Sequence[int] = ()) -> None:
    """Kill every process below this one but some, including those that arrive while killing."""
    while children := [child for child in list_children(os.getpid()) if child not in spare]:
        for child in children:
            _kill_tree(child)
            _reap(child)
        time.sleep(0.01)


def list_children(process_id: int) -> list[int]:
    """Direct children of a process, over all its threads."""
    children: list[int] = []
    for task in Path(f"/proc/{process_id}/task").glob("*/children"):
        try:
            children += [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended
    return children


def _kill_tree(process_id: int) -> None:
    for child in list_children(process_id):
        _kill_tree(child)
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)


def _reap(process_id: int) -> None:
    """Collect a child if it has ended, so that it no longer counts as ours."""
    with suppress(ChildProcessError):
        os.waitpid(process_id, os.WNOHANG)


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _forwarding_signals(
    process: subprocess.Popen[bytes],
) -> Iterator[list[tuple[int, float]]]:
    """Hand our signals to the process; yields the list of those received, with their times."""
    received: list[tuple[int, float]] = []

    def forward(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGHUP:
            return  # it comes along with another, or twice, where a terminal is closed
        received.append((number, time.monotonic()))
        if len(received) > 1:
            _kill_tree(process.pid)
        elif process.poll() is None:
            process.send_signal(number)

    # What is ignored stays ignored: `nohup` means to outlive the terminal.
    heeded = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, forward) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child: get a signal when its parent is killed without a chance to clean up.

    To Linux the parent is the thread that has started the child: let it be the main one.
    """
    _prctl(PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    PRCTL(option, value, 0, 0, 0)
