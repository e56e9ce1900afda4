"""Where the ranks of one machine meet: at a store of rank 0 that no other machine can reach.

torch 2.13 lets a store listen on every address of the machine, whatever its own is, and take what
anybody in the network sends. This can go once torch binds to the address that it is given.
"""

import socket
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore, init_process_group

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
        listener = socket.create_server((LOOPBACK, port)).detach()
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
