from dataclasses import replace

import pytest

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.rules import processes
from hunyuan_train.config.rules.processes import check_experts_divide, check_sequence_size
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import A13B
from tests.config.resolved import EIGHT_GPUS, TWO_CORES, resolve_flags, unchecked


@pytest.mark.parametrize("num_processes", [1, 2, 3, 6, 8, 24, 64, 128])
def test_experts_may_be_split_over_any_divisor_of_their_number_and_the_processes(num_processes):
    fitting = [size for size in range(1, 65) if not 64 % size and not num_processes % size]
    for size in range(1, 130):
        run = unchecked(num_processes, expert_parallel_size=size)
        if size in fitting:
            check_experts_divide(run)
            continue
        with pytest.raises(ConfigError, match=f"set {' or '.join(map(str, fitting))}$"):
            check_experts_divide(run)


def test_expert_groups_stay_inside_a_host():
    with pytest.raises(ConfigError, match=r"inside of one: set 1 or 2 or 4$"):
        resolve_flags("--expert_parallel_size 8", EIGHT_GPUS, shape=A13B, slots=(8, 4))
    assert resolve_flags("", EIGHT_GPUS, shape=A13B, slots=(8, 4)).expert_size == 4


@pytest.mark.parametrize(
    ("flags", "machine", "message"),
    [
        ("--num_processes 3", TWO_CORES, "num_processes is 3, but this machine has 2 cores"),
        (
            "--num_processes 2",
            Machine(num_gpus=0, num_cores=1),
            "num_processes is 2, but this machine has 1 core and",
        ),
        ("--num_processes 16", EIGHT_GPUS, "num_processes is 16, but this machine has 8 GPUs"),
        ("--num_processes 8", TWO_CORES, "planned for with --dry_run --gpus 8 --gpu h20$"),
        (
            "--expert_parallel_size 3",
            TWO_CORES,
            "expert_parallel_size is 3; it must divide the model's 16 experts, and num_processes "
            "of each machine, because tokens go to experts inside of one: set 1 or 2",
        ),
        ("--use_flash_attn", TWO_CORES, "use_flash_attn is true, but there is no GPU"),
        ("--use_flash_attn --bf16 false", EIGHT_GPUS, "flash-attn computes in 16 bits only"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(flags, machine, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(flags, machine)


def test_missing_kernels_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="flash-attn is not installed; install it with `pip"):
        resolve_flags("--use_flash_attn", EIGHT_GPUS)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_rows_of_the_released_model_can_be_shared_by_any_power_of_two_up_to_its_heads(size):
    check_sequence_size(unchecked(64, sequence_parallel_size=size))


@pytest.mark.parametrize(
    ("size", "num_ranks", "heads", "fitting"),
    [
        (3, 8, (32, 8), "1 or 2 or 4 or 8"),
        (16, 8, (32, 8), "1 or 2 or 4 or 8"),
        (64, 64, (32, 8), "1 or 2 or 4 or 8 or 16 or 32"),
        (4, 12, (12, 6), "1 or 2 or 3 or 6 or 12"),
    ],
)
def test_other_sizes_are_refused_with_those_that_fit(size, num_ranks, heads, fitting):
    run = unchecked(num_ranks, heads=heads, sequence_parallel_size=size)
    with pytest.raises(ConfigError, match=rf"sequence_parallel_size is {size}; .* set {fitting}$"):
        check_sequence_size(run)


def test_rows_may_be_shared_across_hosts():
    run = unchecked(2, sequence_parallel_size=4)
    with pytest.raises(ConfigError, match="sequence_parallel_size is 4"):
        check_sequence_size(run)
    check_sequence_size(replace(run, slots=(2, 2)))


def test_more_processes_than_tokens_are_refused():
    run = unchecked(32, sequence_parallel_size=32, max_seq_length=16)
    with pytest.raises(ConfigError, match=r"is 32 and max_seq_length 16, .* lower sequence_par"):
        check_sequence_size(run)
