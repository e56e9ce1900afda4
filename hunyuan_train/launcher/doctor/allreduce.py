"""Measures what the network between hosts carries, as one of the ranks of a job.

Every rank takes part in an all-reduce; then each two neighbouring hosts send to each other, one
pair after the other, so that a slow cable can be told from a slow host. Rank 0 prints one line of
JSON. It imports torch, and so is never imported by the launcher.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

TRIAL_BYTES, MAX_BYTES = 2**20, 2**28
TARGET_SECONDS = 1.0  # that one all-reduce is to take, between the two
REPEATS = 3
TIMEOUT = timedelta(seconds=45)


def choose_size(device: torch.device) -> int:
    """As many bytes as the network moves in about a second; the same on every rank."""
    values = torch.ones(TRIAL_BYTES // 4, device=device)
    time_it(lambda: dist.all_reduce(values), device)  # makes the connections
    seconds = time_it(lambda: dist.all_reduce(values), device)
    wanted = torch.tensor([TRIAL_BYTES * TARGET_SECONDS / seconds], device=device)
    dist.broadcast(wanted, 0)
    return int(min(MAX_BYTES, max(TRIAL_BYTES, float(wanted)))) // 4 * 4


def measure_all_reduce(num_bytes: int, device: torch.device) -> float:
    """Seconds that an all-reduce of so many bytes of float32 takes, the best of a few."""
    values = torch.ones(num_bytes // 4, device=device)
    return min(time_it(lambda: dist.all_reduce(values), device) for _ in range(REPEATS))


def measure_pairs(num_bytes: int, device: torch.device) -> list[float]:
    """Seconds for so many bytes from each rank to the next one and back, pair after pair."""
    values = torch.ones(num_bytes // 4, device=device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    seconds = torch.zeros(world_size, dtype=torch.float64, device=device)
    for first in range(world_size if world_size > 2 else 1):
        second = (first + 1) % world_size
        dist.barrier()
        if rank not in (first, second):
            continue
        other = second if rank == first else first
        began = time.perf_counter()
        for sender in (first, second):
            (dist.send if rank == sender else dist.recv)(values, other)
        synchronize(device)
        if rank == first:
            seconds[first] = time.perf_counter() - began
    dist.all_reduce(seconds)
    return [float(one) for one in seconds]


def time_it(collective: Callable[[], object], device: torch.device) -> float:
    """Seconds until a collective is done."""
    dist.barrier()
    began = time.perf_counter()
    collective()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, and let rank 0 say it."""
    uses_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    device = (
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if uses_gpu else torch.device("cpu")
    )
    if uses_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if uses_gpu else "gloo", timeout=TIMEOUT)
    num_bytes = choose_size(device)
    result = {
        "num_bytes": num_bytes,
        "all_reduce_seconds": measure_all_reduce(num_bytes, device),
        "pair_seconds": measure_pairs(num_bytes, device),
    }
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(result) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
