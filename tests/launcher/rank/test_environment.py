import os
import sys
from pathlib import Path

import pytest

from hunyuan_train.launcher.rank.environment import (
    forwarded_environment,
    library_defaults,
    rank_environment,
)


def test_ranks_share_the_cores_and_find_this_environments_tools(repository):
    found = rank_environment({"PATH": "/bin"}, num_processes=2, num_gpus=0, num_cores=9)
    assert found["OMP_NUM_THREADS"] == "4"
    assert found["DS_ACCELERATOR"] == "cpu"
    assert found["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"
    assert found["PYTHONPATH"] == str(repository)
    assert Path(found["TORCH_EXTENSIONS_DIR"]).parent == Path(sys.prefix, "torch_extensions")
    on_gpus = rank_environment({}, num_processes=2, num_gpus=2, num_cores=1)
    assert on_gpus["OMP_NUM_THREADS"] == "1"
    assert "DS_ACCELERATOR" not in on_gpus


@pytest.mark.parametrize("allocator", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_choice_stays(allocator):
    chosen = {"OMP_NUM_THREADS": "7", "TORCH_FR_BUFFER_SIZE": "5", allocator: "backend:native"}
    chosen |= {"TORCHINDUCTOR_COMPILE_THREADS": "16", "TORCH_NCCL_TRACE_BUFFER_SIZE": "9"}
    found = rank_environment(chosen, num_processes=2, num_gpus=2, num_cores=2)
    assert {name: found[name] for name in chosen} == chosen
    assert len([name for name in found if name.endswith("ALLOC_CONF")]) == 1


def test_torch_is_told_of_recorders_segments_and_workers_on_gpus():
    found = library_defaults({}, num_gpus=8, cores_per_rank=24)
    assert found == {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    on_few_cores = library_defaults({}, num_gpus=8, cores_per_rank=1)
    assert on_few_cores["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "PYTORCH_ALLOC_CONF" not in library_defaults({}, num_gpus=0, cores_per_rank=1)


def test_what_a_run_needs_reaches_other_hosts_and_nothing_else():
    needed = {
        **{"NCCL_IB_HCA": "mlx5", "TORCH_NCCL_AVOID_RECORD_STREAMS": "1", "HF_TOKEN": "secret"},
        **{
            "WANDB_API_KEY": "secret",
            "DS_ACCELERATOR": "cpu",
            "PATH": "/bin",
            "OMP_PROC_BIND": "1",
        },
        **{"GLOO_SOCKET_IFNAME": "eth0", "https_proxy": "http://proxy", "PYTHONHASHSEED": "0"},
    }
    others = {"HOME": "/root", "SSH_AUTH_SOCK": "/x", "AWS_SECRET_ACCESS_KEY": "secret", "PS1": "$"}
    assert forwarded_environment(needed | others) == needed
