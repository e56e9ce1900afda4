"""Keeps a rank on the CPU cores next to its GPU, where its memory and its copies are fastest.

torchrun's --numa-binding does the same by the program numactl, and ends where that is missing.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SYSTEM = Path("/sys")
TASKS = Path("/proc/self/task")


def bind_to_numa_node(local_rank: int, *, system: Path = SYSTEM) -> None:
    """Bind all threads of this process, and those to come, to the cores of its GPU's node.

    Does nothing without a GPU, on a machine with one node, or where somebody has bound the process
    to one already.

    Args:
        local_rank: its GPU's index.
        system: where the kernel describes the machine.
    """
    if not torch.cuda.is_available():
        return
    gpu = torch.cuda.get_device_properties(local_rank)
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    allowed = os.sched_getaffinity(0)
    cores = choose_cores(allowed, address, system)
    if cores == allowed:
        return
    for task in TASKS.iterdir():
        bind_thread(int(task.name), cores)
    logger.info("keeps to %d cores, of the NUMA node of GPU %s", len(cores), address)


def bind_thread(thread_id: int, cores: set[int]) -> None:
    """Bind one thread; it may have ended meanwhile."""
    with suppress(ProcessLookupError):
        os.sched_setaffinity(thread_id, cores)


def choose_cores(allowed: set[int], address: str, system: Path) -> set[int]:
    """The cores that are allowed and next to a device; all that are allowed where none is known.

    Args:
        allowed: the process's own.
        address: of the device, as PCI counts.
        system: where the kernel describes the machine.
    """
    nodes = dict(read_nodes(system))
    if sum(bool(allowed & cores) for cores in nodes.values()) < 2:  # one node, or bound already
        return allowed
    try:
        node = int((system / "bus/pci/devices" / address / "numa_node").read_text())
    except (OSError, ValueError):
        return allowed
    return (allowed & nodes.get(node, set())) or allowed  # -1: the firmware does not say


def read_nodes(system: Path) -> Iterator[tuple[int, set[int]]]:
    """Each NUMA node of this machine with its cores."""
    for folder in (system / "devices/system/node").glob("node[0-9]*"):
        yield (
            int(folder.name.removeprefix("node")),
            parse_cores((folder / "cpulist").read_text().strip()),
        )


def parse_cores(listed: str) -> set[int]:
    """Cores as the kernel lists them: "0-47,96-143"; nothing for a node of memory alone."""
    cores: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores
