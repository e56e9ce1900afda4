"""torchrun's own agent in a process of its own, with its failure report replaced by ours.

`python -m hunyuan_train.launcher.host.torchrun_agent ARGUMENTS` runs what the `torchrun` command
runs, but passes on the exit code of the rank that failed first (torchrun always says 1), and leaves
what that rank said to the node's agent instead of printing a traceback of the agent.
"""

import json
import logging
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous
from torch.distributed.run import parse_args, run

from hunyuan_train.launcher.exit_codes import RESUME, USER_ERROR
from hunyuan_train.launcher.host.gpu_faults import describe_faults, find_faults
from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.probe import read_gpu_faults
from hunyuan_train.launcher.rank.heartbeat import node_folder
from hunyuan_train.launcher.rank.worker import FAILURE_REPORT
from hunyuan_train.screen import outlive_the_screen
from hunyuan_train.terminal import complain

LOOPBACK = "127.0.0.1"  # where the ranks of one machine meet


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code of the first that failed."""
    started = time.monotonic()
    logging.disable()  # it narrates signals and exits; the node agent reports what matters
    try:
        with listening_where_asked():
            run(parse_args(list(arguments)))
    except ChildFailedError as error:
        exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if RESUME in exit_codes.values():  # all stopped as one; the agent may have ended the last
            return RESUME
        return leave_cause(exit_codes, node_folder(), seconds=time.monotonic() - started)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


@contextmanager
def listening_where_asked() -> Iterator[None]:
    """Let the store of a run on one machine listen on loopback alone.

    torch 2.13 lets a store listen on every address of the machine, whatever its own is, and take
    what anybody in the network sends. It can go once torch binds to the address that it is given.
    """
    plain = static_tcp_rendezvous.TCPStore

    def make_store(
        address: str,
        port: int,
        world_size: int,
        is_master: bool,  # torch's order
        timeout: timedelta,
        *,
        multi_tenant: bool,
    ) -> TCPStore:
        listener = None
        if is_master and address == LOOPBACK:
            listener = socket.create_server((address, port)).detach()
        return plain(
            address,
            port,
            world_size,
            is_master,
            timeout,
            multi_tenant=multi_tenant,
            master_listen_fd=listener,
        )

    static_tcp_rendezvous.TCPStore = make_store  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        static_tcp_rendezvous.TCPStore = plain  # type: ignore[misc]


def leave_cause(exit_codes: Mapping[int, int], folder: Path | None, *, seconds: float) -> int:
    """Tell the agent which rank failed first, and return its exit code as a shell would.

    Without an agent, as under Slurm, the ranks have printed their failure reports themselves.

    Args:
        exit_codes: by rank.
        folder: the node's.
        seconds: since the ranks were started.
    """
    if folder is None:
        number = exit_codes[min(exit_codes)]
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
    rank = min(exit_codes)
    return rank, describe_end(rank, exit_codes[rank])


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
