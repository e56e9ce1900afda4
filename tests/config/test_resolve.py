from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY

EIGHT_GPUS = Machine(num_gpus=8, num_cores=64)
TWO_CORES = Machine(num_gpus=0, num_cores=2)
ONE_CORE = Machine(num_gpus=0, num_cores=1)


@pytest.mark.parametrize(
    ("flags", "machine", "num_experts", "num_processes", "expert_size", "file", "optimizer"),
    [
        ("", EIGHT_GPUS, 64, 8, 8, "zero3_ep", "adamw"),
        ("", TWO_CORES, 16, 2, 2, "zero3_ep", "adamw"),
        ("", ONE_CORE, 16, 1, 1, "zero3", "adamw"),
        ("--num_processes 6", EIGHT_GPUS, 64, 6, 2, "zero3_ep", "adamw"),
        ("--expert_parallel_size 4", EIGHT_GPUS, 64, 8, 4, "zero3_ep", "adamw"),
        ("--expert_parallel_size 1", EIGHT_GPUS, 64, 8, 1, "zero3", "adamw"),
        ("--optimizer offload", EIGHT_GPUS, 64, 8, 8, "zero3_ep_offload", "offload"),
        ("--optimizer sgd", TWO_CORES, 16, 2, 2, "zero3_ep", "sgd"),
        ("--deepspeed ds_configs/zero2.json", TWO_CORES, 16, 2, 1, "zero2", "adamw"),
        (
            "--deepspeed ds_configs/zero3_offload.json",
            TWO_CORES,
            16,
            2,
            1,
            "zero3_offload",
            "offload",
        ),
    ],
)
def test_auto_is_decided_by_machine_model_and_file(
    flags, machine, num_experts, num_processes, expert_size, file, optimizer
):
    config = resolve_config(
        load_config(flags.split()), machine=machine, shape=replace(TINY, num_experts=num_experts)
    )
    assert config.parallel.num_processes == num_processes
    assert config.parallel.expert_parallel_size == expert_size
    assert Path(config.parallel.deepspeed).stem == file
    assert config.optimizer.optimizer == optimizer
    assert config.train.bf16 is (machine.num_gpus > 0)


def test_resolving_twice_changes_nothing():
    once = resolve_config(load_config([]), machine=EIGHT_GPUS, shape=A13B)
    assert resolve_config(once, machine=EIGHT_GPUS, shape=A13B) == once
