"""What the ranks find in their environment, on this machine and on others."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE
from hunyuan_train.shipped import python_path

# What a run needs of the launcher's environment reaches every host, over stdin: some is secret.
FORWARDED_PREFIXES = (
    *("NCCL_", "GLOO_", "UCX_", "FI_", "TORCH", "PYTORCH_", "CUDA_", "TRITON_", "OMP_", "MKL_"),
    *("KMP_", "DS_", "DEEPSPEED_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "WANDB_", "PYTHON"),
    *("CUBLAS_", "FLASH_ATTENTION_", "SWANLAB_", "MLFLOW_"),
)
FORWARDED = (
    *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "TZ", "LANG", "LC_ALL"),
    *("CC", "CXX"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
FLIGHT_RECORDER_ENTRIES = "2000"  # the last collectives that each rank remembers
FLIGHT_RECORDER = "TORCH_FR_BUFFER_SIZE"
# The older name, of which torch warns; NCCL's watchdog still asks by it if there is a recorder.
NCCL_FLIGHT_RECORDER = "TORCH_NCCL_TRACE_BUFFER_SIZE"
INDUCTOR_WORKERS = 4  # of a rank: the update of `lean` is some seven kernels, and nothing else is
# torch's names for one variable, the newer first. Segments that grow leave fewer holes between the
# tensors of steps whose experts get other numbers of tokens each time.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
ALLOCATOR_SETTINGS = "expandable_segments:True"
# By variable the values under which results are the same each time, ours first. cuBLAS works in
# memory of a fixed size; flash-attn, called by Transformers, adds up gradients in one order; NCCL
# sums in its ranks, and not in switches (NVLS), which may take them as they come.
DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "FLASH_ATTENTION_DETERMINISTIC": ("1",),
    "NCCL_NVLS_ENABLE": ("0",),
}


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
    cores_per_rank = max(1, num_cores // num_processes)
    ours.setdefault("OMP_NUM_THREADS", str(cores_per_rank))
    if num_gpus == 0:
        ours["DS_ACCELERATOR"] = "cpu"
    defaults = library_defaults(ours, num_gpus=num_gpus, cores_per_rank=cores_per_rank)
    return ours | defaults


def library_defaults(
    environment: Mapping[str, str], *, num_gpus: int, cores_per_rank: int
) -> dict[str, str]:
    """What torch is told where the user has not said anything, in the launcher or in a rank."""
    defaults = {FLIGHT_RECORDER: FLIGHT_RECORDER_ENTRIES}
    if num_gpus:
        defaults[NCCL_FLIGHT_RECORDER] = FLIGHT_RECORDER_ENTRIES
        # Each rank starts so many when something is compiled: by default one for each core.
        defaults["TORCHINDUCTOR_COMPILE_THREADS"] = str(min(INDUCTOR_WORKERS, cores_per_rank))
        if not any(name in environment for name in ALLOCATOR_VARIABLES):
            defaults[ALLOCATOR_VARIABLES[0]] = ALLOCATOR_SETTINGS
    return {name: value for name, value in defaults.items() if name not in environment}


def deterministic_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What --deterministic sets for cuBLAS, flash-attn and NCCL, each read when it is first used.

    Raises:
        ConfigError: the user has set one of them to a value under which results vary.
    """
    for name, values in DETERMINISTIC.items():
        if (given := environment.get(name, values[0])) not in values:
            raise ConfigError(
                f"deterministic is true, and {name} is set to {given}, under which the last bits "
                f"of results vary; unset it, or set it to {' or '.join(values)}"
            )
    return {name: environment.get(name, values[0]) for name, values in DETERMINISTIC.items()}
