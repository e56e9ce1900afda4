"""What the ranks find in their environment, on this machine and on others."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE
from hunyuan_train.shipped import python_path

# What a run needs of the launcher's environment reaches every host, over stdin: some is secret.
FORWARDED_PREFIXES = (
    *("NCCL_", "GLOO_", "UCX_", "FI_", "TORCH", "PYTORCH_", "CUDA_", "TRITON_", "OMP_", "MKL_"),
    *("KMP_", "DS_", "DEEPSPEED_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "WANDB_", "PYTHON"),
)
FORWARDED = (
    *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "TZ", "LANG", "LC_ALL"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
FLIGHT_RECORDER_ENTRIES = "2000"  # the last collectives that each rank remembers
# torch's allocator, where the user says nothing of it. Rows of experts differ from step to step:
# cut from segments of fixed size they leave holes of GiB, far less in segments that can grow.
ALLOCATOR = "expandable_segments:True"
ALLOCATOR_VARIABLES = frozenset(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
# For the ranks beside a failed one: they wait for it in a collective, and have nothing to save.
SHUTDOWN_SECONDS = "5"


def forwarded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of our environment that ranks on other hosts need."""
    return {
        name: value
        for name, value in environment.items()
        if name in FORWARDED or name.startswith(FORWARDED_PREFIXES)
    }


def own_environment() -> dict[str, str]:
    """Ours, for a process on this machine that imports this package."""
    return {**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH"))}


def rank_environment(
    environment: Mapping[str, str], *, num_processes: int, num_gpus: int, num_cores: int
) -> dict[str, str]:
    """Ours, with what decides speed, the choice of device, and what is known after a hang.

    Args:
        environment: the launcher's, or what of it is forwarded.
        num_processes: ranks of the host.
        num_gpus: of the host; 0 trains on the CPU.
        num_cores: of the host, which its ranks share.
    """
    ours = dict(environment)
    ours.pop(FOLDER_VARIABLE, None)
    bin_folder = str(Path(sys.executable).parent)  # its ninja, not one that happens to be in PATH
    ours["PATH"] = f"{bin_folder}{os.pathsep}{ours.get('PATH', os.defpath)}"
    ours["PYTHONPATH"] = python_path(ours.get("PYTHONPATH"))
    ours["TORCH_EXTENSIONS_DIR"] = str(extensions_folder(ours))
    ours["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = SHUTDOWN_SECONDS
    ours.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_processes)))
    ours.setdefault("TORCH_FR_BUFFER_SIZE", FLIGHT_RECORDER_ENTRIES)
    if num_gpus and not ours.keys() & ALLOCATOR_VARIABLES:
        ours["PYTORCH_ALLOC_CONF"] = ALLOCATOR
    if num_gpus == 0:
        ours["DS_ACCELERATOR"] = "cpu"
    return ours
