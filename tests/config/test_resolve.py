from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.config import resolve as resolve_module
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY
from tests.config.resolved import ALL_BUT_DISK, EIGHT_GPUS, TWO_CORES, resolve_flags

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
    run = resolve_flags(flags, machine, shape=replace(TINY, num_experts=num_experts))
    assert run.slots == (num_processes,)
    assert run.config.parallel.num_processes == num_processes
    assert run.expert_size == expert_size
    assert Path(run.engine_path).stem == file
    assert run.optimizer.name == optimizer
    assert run.is_bf16 is (machine.num_gpus > 0)


def test_resolving_twice_changes_nothing():
    once = resolve_flags("", EIGHT_GPUS, shape=A13B)
    again = resolve(once.config, shape=A13B, machine=EIGHT_GPUS, known=ALL_BUT_DISK)
    assert again == once


@pytest.mark.parametrize("recipe", ["lora", "one_gpu"])
def test_alpha_follows_the_rank_where_it_is_not_given(recipe):
    flags = ["--recipe", recipe, "--model_name_or_path", "tiny", "--expert_weights", "bf16"]
    flags += ["--bf16", "false"]
    for given, alpha in (
        ([], 128),
        (["--lora_rank", "8"], 16),
        (["--lora_rank", "8", "--lora_alpha", "4"], 4),
    ):
        lora = resolve_flags([*flags, *given], shape=TINY).config.lora
        assert lora.lora_alpha == alpha
        assert lora.scaling == alpha / lora.lora_rank


def test_the_deepspeed_file_is_read_once(monkeypatch):
    paths = []
    read = resolve_module.read_deepspeed_file
    monkeypatch.setattr(
        resolve_module, "read_deepspeed_file", lambda path: paths.append(path) or read(path)
    )
    for flags in ("", "--deepspeed ds_configs/zero3_ep.json", "--use_lora --lora_rank 8"):
        paths.clear()
        resolve_flags(flags)
        assert len(paths) == 1


def test_what_is_known_of_a_run_follows_from_its_hosts_and_settings():
    flags = "--max_seq_length 64 --per_device_train_batch_size 3 --sequence_parallel_size 4"
    run = resolve_flags(flags, EIGHT_GPUS, shape=A13B, slots=(8, 4))
    assert (run.num_nodes, run.num_ranks, run.ranks_per_node, run.host_divisor) == (2, 12, 8, 4)
    assert run.num_tokens == 48
    assert run.element_bytes == 2
    assert run.zero_number("stage3_max_live_parameters") == 400_000_000  # of the file
    assert run.zero_number("sub_group_size") == 1_000_000_000  # the engine's own
