"""Counts what this machine offers, without importing torch."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.launcher.host.probe import host_memory

NVIDIA_SMI_SECONDS = 20  # without persistence mode the driver takes seconds to wake up


def detect_machine() -> Machine:
    """GPUs that a run would use, and cores that this process may run on."""
    num_gpus = count_gpus()
    return Machine(
        num_gpus=num_gpus,
        num_cores=len(os.sched_getaffinity(0)),
        gpu_memory=smallest_gpu_memory() if num_gpus else 0,
        host_memory=host_memory(),
    )


def smallest_gpu_memory() -> int:
    """Bytes of the GPU that has fewest, as its driver says; 0 where it does not."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(
            query, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    sizes = [int(line) for line in listing.stdout.splitlines() if line.strip().isdigit()]
    return min(sizes, default=0) * 2**20


def count_gpus() -> int:
    """GPUs that torch will see: none where the user or the torch build asks for the CPU."""
    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda" or is_cpu_build():
        return 0
    num_gpus = count_driver_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_gpus
    chosen = [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    return min(num_gpus, len(chosen))


def count_driver_gpus() -> int:
    """GPUs of the driver: as nvidia-smi lists them, which a container may lack."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def is_cpu_build() -> bool:
    """Whether the installed torch has no CUDA in it, as its version says."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
