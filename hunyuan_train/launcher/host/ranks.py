"""Starts the ranks of one host, waits for them, and passes on how they ended.

    python -m hunyuan_train.launcher.host.ranks --ranks_here 8 --first_rank 8 --num_ranks 16 \\
        --master_addr HOST --master_port PORT [--is_marked] [--stop_seconds 300] -- SCRIPT ...

It does what torchrun does with fixed places and no restarts. torchrun would import torch for it: a
second of processor time and 230 MB on every host, before any rank starts. The ranks meet at a store
of rank 0. With port 0, all are on this machine: the port is chosen here, and held until rank 0 has
imported torch, which takes seconds, and listens on it. The exit code is that of the rank that
failed first (torchrun always says 1). What that rank said is left to the node's agent.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from hunyuan_train.config.launch_schema import LISTENER
from hunyuan_train.launcher.exit_codes import RESUME, SUCCESS, USER_ERROR
from hunyuan_train.launcher.host.gpu_faults import describe_faults, find_faults
from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.probe import read_gpu_faults
from hunyuan_train.launcher.host.supervise import die_with_parent
from hunyuan_train.launcher.rank.heartbeat import FAILURE_REPORT, node_folder
from hunyuan_train.screen import outlive_the_screen, write_whole
from hunyuan_train.terminal import PlainParser, complain

POLL_SECONDS = 0.1
# For the ranks beside a failed one: they wait for it in a collective, and have nothing to save.
SHUTDOWN_SECONDS = 5.0
KILL_SECONDS = 5.0  # for a killed rank to go; one that waits for a lost GPU or disk may not
# What marks a line with its rank on the way to the launcher, which shows it otherwise.
RANK_MARK = "\x1e"
MAX_LINE_BYTES = 2**20  # of which one is kept until it ends; a longer one is passed on in pieces
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# What a torchrun around us says of its own ranks: that it has a store for them, for one.
TORCHRUN_PREFIX = "TORCHELASTIC_"


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code of the first that failed."""
    place = read_place(arguments)
    if node_folder():
        # Without the agent the launcher ends, or starts again: nobody may save beside a new run.
        die_with_parent(signal.SIGKILL)
    started = time.monotonic()
    signals: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: signals.append(number))
    ranks = start_ranks(place)
    readers = pass_on_lines(ranks) if place.is_marked else []  # no thread before the last fork
    exit_codes = wait_for_ranks(ranks, signals, stop_seconds=place.stop_seconds)
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    for reader in readers:  # a process that a rank has left behind may hold its pipe
        reader.join(max(0.0, deadline - time.monotonic()))
    if not exit_codes:
        return SUCCESS
    if RESUME in exit_codes.values():  # all stopped as one; the last may have been ended here
        return RESUME
    if signals:
        return 128 + signals[0]
    return leave_cause(exit_codes, node_folder(), seconds=time.monotonic() - started)


def read_place(arguments: Sequence[str]) -> argparse.Namespace:
    """Which ranks are started, where all meet, and the words of what they run."""
    parser = PlainParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks_here", type=int, required=True)
    parser.add_argument("--first_rank", type=int, required=True)
    parser.add_argument("--num_ranks", type=int, required=True, help="on all hosts")
    parser.add_argument("--master_addr", required=True, help="where rank 0 is")
    parser.add_argument("--master_port", required=True, help="0: one of this machine, chosen here")
    parser.add_argument("--is_marked", action="store_true", help="begin each line with its rank")
    parser.add_argument("--stop_seconds", type=float, default=SHUTDOWN_SECONDS)
    parser.add_argument("words", nargs="+", help="for Python, behind --")
    return parser.parse_args(arguments)


def start_ranks(place: argparse.Namespace) -> dict[int, subprocess.Popen[bytes]]:
    """Start all ranks of this host."""
    listener = None
    if place.master_port == "0":
        listener = socket.create_server((place.master_addr, 0))
        place.master_port = str(listener.getsockname()[1])
    first = place.first_rank
    ranks = {
        rank: start_rank(rank, place, listener if rank == 0 else None)
        for rank in range(first, first + place.ranks_here)
    }
    if listener:
        listener.close()  # rank 0 has it, and takes it along when it ends
    return ranks


def start_rank(
    rank: int, place: argparse.Namespace, listener: socket.socket | None
) -> subprocess.Popen[bytes]:
    """Start one rank, in a session of its own, with the socket at which all meet if it has it."""
    output = subprocess.PIPE if place.is_marked else None
    environment = environment_of_rank(rank, place, os.environ)
    if listener:
        environment[LISTENER] = str(listener.fileno())
    return subprocess.Popen(
        [sys.executable, "-u", *place.words],
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if place.is_marked else None,
        start_new_session=True,
        preexec_fn=die_with_parent,
        pass_fds=[listener.fileno()] if listener else [],
    )


def environment_of_rank(
    rank: int, place: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, str]:
    """What torch, DeepSpeed and we ask of torchrun."""
    cores = max(1, len(os.sched_getaffinity(0)) // place.ranks_here)
    defaults = {
        "OMP_NUM_THREADS": str(cores),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # as under torchrun, and not by torch's own default
    }
    inherited = {
        name: value
        for name, value in environment.items()
        if name != LISTENER and not name.startswith(TORCHRUN_PREFIX)
    }
    return {
        **defaults,
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank - place.first_rank),
        "WORLD_SIZE": str(place.num_ranks),
        "LOCAL_WORLD_SIZE": str(place.ranks_here),
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": place.master_port,
    }


def pass_on_lines(ranks: Mapping[int, subprocess.Popen[bytes]]) -> list[threading.Thread]:
    """Pass on what ranks say with their mark before each line, in a thread for each."""
    whole_lines = threading.Lock()  # a pipe takes long ones in pieces
    threads = []
    for rank, process in ranks.items():
        mark = f"{RANK_MARK}{rank}{RANK_MARK}".encode()
        arguments = (process.stdout, mark, whole_lines)
        threads.append(threading.Thread(target=_pass_on, args=arguments, daemon=True))
        threads[-1].start()
    return threads


def _pass_on(output: IO[bytes], mark: bytes, whole_lines: threading.Lock) -> None:
    while line := output.readline(MAX_LINE_BYTES):
        end = b"" if line.endswith(b"\n") else b"\n"  # or the next rank's line would go on in it
        # Where the launcher is gone, the agent will end the ranks, not this.
        with whole_lines, suppress(OSError):
            write_whole(sys.stdout.fileno(), mark + line + end)


def wait_for_ranks(
    ranks: Mapping[int, subprocess.Popen[bytes]], signals: Sequence[int], *, stop_seconds: float
) -> dict[int, int]:
    """Wait until all have ended; when one fails, or a signal comes, end the others.

    Args:
        ranks: their processes.
        signals: numbers of those received, to which others are added meanwhile.
        stop_seconds: for ranks to end by themselves after a signal.

    Returns:
        the exit codes of those that failed, as `subprocess` has them, first of those that did so
        by themselves. A rank that was ended for another's sake counts as stopped by SIGTERM,
        whatever it died of then, unless it failed by itself meanwhile.
    """
    while not signals and None in (codes := [one.poll() for one in ranks.values()]):
        if any(codes):
            break
        time.sleep(POLL_SECONDS)
    running = {rank: process for rank, process in ranks.items() if process.poll() is None}
    ended = {rank: process.returncode for rank, process in ranks.items() if rank not in running}
    if signals:
        ended |= end_ranks(running, signals[0], seconds=stop_seconds)
    else:
        for rank, code in end_ranks(running, signal.SIGTERM, seconds=SHUTDOWN_SECONDS).items():
            # gloo and NCCL abort in some that lose another, and some stop as if the user had asked.
            ended[rank] = -signal.SIGTERM if code < 0 or code == RESUME else code
    return {rank: code for rank, code in ended.items() if code != SUCCESS}


def end_ranks(
    ranks: Mapping[int, subprocess.Popen[bytes]], number: int, *, seconds: float
) -> dict[int, int]:
    """Send ranks a signal, kill those that are still there after a time, return the exit codes.

    One that was killed here counts as stopped by SIGTERM.
    """
    for process in ranks.values():
        process.send_signal(number)
    deadline = time.monotonic() + seconds
    exit_codes = {}
    for rank, process in ranks.items():
        with suppress(subprocess.TimeoutExpired):
            exit_codes[rank] = process.wait(max(0.0, deadline - time.monotonic()))
    late = {rank: process for rank, process in ranks.items() if rank not in exit_codes}
    for process in late.values():
        process.kill()
    deadline = time.monotonic() + KILL_SECONDS
    for rank, process in late.items():
        exit_codes[rank] = -signal.SIGTERM
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    return exit_codes


def leave_cause(exit_codes: Mapping[int, int], folder: Path | None, *, seconds: float) -> int:
    """Tell the agent which rank failed first, and return its exit code as a shell would.

    Without an agent, as under Slurm, the ranks have printed their failure reports themselves.

    Args:
        exit_codes: by rank, as `wait_for_ranks` orders them.
        folder: the node's.
        seconds: since the ranks were started.
    """
    if folder is None:
        number = exit_codes[first_failed(exit_codes)]
        if faults := find_gpu_faults(seconds):
            complain(faults)
        return number if number > 0 else 128 - number
    rank, words = find_cause(exit_codes, folder)
    number = exit_codes[rank]
    exit_code = number if number > 0 else 128 - number
    if exit_code != USER_ERROR and (faults := find_gpu_faults(seconds)):
        words = f"{words}\n{faults}"
    file = folder / f"{rank}{FAILURE_REPORT}"
    cause = {
        "rank": rank,
        "exit_code": exit_code,
        "words": words,
        "time": file.stat().st_mtime if file.exists() else time.time(),
    }
    (folder / CAUSE).write_text(json.dumps(cause), encoding="utf-8")
    return exit_code


def find_gpu_faults(seconds: float) -> str:
    """What the driver says of errors of this host's GPUs in so many seconds; mostly nothing."""
    if not shutil.which("nvidia-smi"):
        return ""
    return describe_faults(find_faults(read_gpu_faults(), within_seconds=seconds))


def find_cause(exit_codes: Mapping[int, int], folder: Path) -> tuple[int, str]:
    """The rank of this node that failed first and its failure report.

    A killed rank says nothing, while those it leaves behind complain of a lost connection; among
    ranks that ended by themselves the first to write is the cause.
    """
    for rank, exit_code in exit_codes.items():
        if exit_code < 0 and exit_code != -signal.SIGTERM:  # SIGTERM is how the agent stops them
            return rank, describe_end(rank, exit_code)
    files = sorted(folder.glob(f"*{FAILURE_REPORT}"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        if int(file.stem) in exit_codes:
            return int(file.stem), file.read_text(encoding="utf-8")
    rank = first_failed(exit_codes)
    return rank, describe_end(rank, exit_codes[rank])


def first_failed(exit_codes: Mapping[int, int]) -> int:
    """The first rank that was not merely stopped, where there is one."""
    failed = [rank for rank, code in exit_codes.items() if code != -signal.SIGTERM]
    return next(iter(failed or exit_codes))


def describe_end(rank: int, exit_code: int) -> str:
    """How a rank was ended that said nothing."""
    if exit_code == -signal.SIGKILL:
        return (
            f"error: rank {rank} was killed (SIGKILL); if nobody did, this machine ran out of "
            "memory: see `dmesg`, and try fewer processes or a smaller --max_seq_length"
        )
    if exit_code == -signal.SIGABRT:
        return (
            f"error: rank {rank} was ended by SIGABRT: a library gave up, as NCCL does with a "
            "collective that waits longer than --timeout_minutes; what it printed stands above"
        )
    if exit_code < 0:
        return f"error: rank {rank} was ended by {signal.Signals(-exit_code).name}"
    return f"error: rank {rank} ended with exit code {exit_code}"


if __name__ == "__main__":
    outlive_the_screen(is_rank=True)
    sys.exit(main(sys.argv[1:]))
