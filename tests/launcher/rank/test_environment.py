import os
import sys
from pathlib import Path

from hunyuan_train.launcher.rank.environment import forwarded_environment, rank_environment


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


def test_torchs_allocator_has_segments_that_grow_on_gpus_unless_the_user_says_something_of_it():
    on_gpus = rank_environment({}, num_processes=2, num_gpus=2, num_cores=1)
    assert on_gpus["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    on_cpus = rank_environment({}, num_processes=2, num_gpus=0, num_cores=1)
    assert "PYTORCH_ALLOC_CONF" not in on_cpus
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):  # the second: torch's older name
        chosen = {name: "max_split_size_mb:512"}
        found = rank_environment(chosen, num_processes=2, num_gpus=2, num_cores=1)
        assert {one: value for one, value in found.items() if "ALLOC_CONF" in one} == chosen


def test_the_users_choice_stays():
    chosen = {"OMP_NUM_THREADS": "7", "TORCH_FR_BUFFER_SIZE": "5"}
    found = rank_environment(chosen, num_processes=2, num_gpus=0, num_cores=2)
    assert {name: found[name] for name in chosen} == chosen


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
