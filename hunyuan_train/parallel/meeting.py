"""Where the ranks of one machine meet: at a store of rank 0 that no other machine can reach.

torch 2.13 lets a store listen on every address of the machine, whatever its own is, and take what
anybody in the network sends. This can go once torch binds to the address that it is given.

Our launcher holds the port for rank 0 from the start: importing torch takes seconds, in which any
connection of this machine could get it. Elsewhere it may be taken by then.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistNetworkError, PrefixStore, TCPStore, init_process_group

from hunyuan_train.config.launch_schema import LISTENER

LOOPBACK = "127.0.0.1"
HAS_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # set by torchrun, whose agent has a store itself


def meets_on_loopback(environment: Mapping[str, str]) -> bool:
    """Whether all ranks are on this machine, and rank 0 is to make the store."""
    return environment.get("MASTER_ADDR") == LOOPBACK and environment.get(HAS_STORE) != "True"


def meet_on_loopback(backend: str, timeout: timedelta, environment: Mapping[str, str]) -> None:
    """Start torch's process group, as its own `env://` would.

    Args:
        backend: of the group.
        timeout: for the ranks to meet, and of the group.
        environment: as torchrun would set it.
    """
    rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    port, listener = int(environment["MASTER_PORT"]), None
    if rank == 0:
        listener = listen(port, environment)
    store = TCPStore(
        LOOPBACK, port, num_ranks, is_master=rank == 0, timeout=timeout, master_listen_fd=listener
    )
    init_process_group(
        backend,
        store=PrefixStore("default_pg", store),
        rank=rank,
        world_size=num_ranks,
        timeout=timeout,
    )


def listen(port: int, environment: Mapping[str, str]) -> int:
    """The descriptor of the socket that was held for rank 0, or of a new one."""
    if LISTENER not in environment:
        return socket.create_server((LOOPBACK, port)).detach()
    listener = int(environment[LISTENER])
    os.set_inheritable(listener, False)  # what this rank starts would hold the port after its end
    return listener


@contextmanager
def explaining_a_taken_port(environment: Mapping[str, str]) -> Iterator[None]:
    """Add to the error of rank 0 what to do where another program has the port of the meeting."""
    try:
        yield
    except (DistNetworkError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None  # torch has it in its words
        if number == errno.EADDRINUSE or "EADDRINUSE" in str(error):
            port = environment.get("MASTER_PORT", "")
            error.add_note(
                f"error: port {port} of this host, at which all ranks meet, is taken by another "
                f"program (see `ss -tlnp 'sport = :{port}'`); end that program, or start again "
                "with another port (--master_port, or MASTER_PORT under torchrun and Slurm)"
            )
        raise
