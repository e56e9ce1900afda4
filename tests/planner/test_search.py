from dataclasses import replace

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.search import estimate_with, find_nearest, method_choices
from tests.config.resolved import resolve_flags

EIGHT_80GB = Machine(num_gpus=8, num_cores=8, gpu_memory=80 * 10**9)


def nearest(*flags: str, machine: Machine = EIGHT_80GB, disk: int = 0, shape: ModelShape = A13B):
    arguments = ["--recipe", "full", "--model_name_or_path", "a13b", *flags]
    run = resolve_flags(arguments, machine, shape=shape)
    return find_nearest(load_config(arguments), run, Hardware(disk=disk))


def test_more_gpus_in_a_machine_come_before_shorter_rows_and_more_machines():
    one = Machine(num_gpus=1, num_cores=8, gpu_memory=48 * 10**9)
    arguments = ["--recipe", "lora", "--model_name_or_path", "a13b"]
    run = resolve_flags(arguments, one, shape=A13B)
    found = find_nearest(load_config(arguments), run, Hardware())
    assert found.flags == ["--expert_weights nf4", "--gpus 2"]
    assert found.estimate.run.num_nodes == 1


def test_states_that_do_not_fit_lead_to_the_lean_optimizer():
    found = nearest("--optimizer", "adamw")
    assert found.estimate.fits
    assert found.flags == ["--optimizer lean"]
    assert found.config.optimizer.optimizer == "lean"


def test_activations_that_do_not_fit_lead_to_gradient_checkpointing_alone():
    found = nearest("--optimizer", "lean", "--no_gradient_checkpointing")
    assert found.flags == ["--gradient_checkpointing true"]


@pytest.mark.parametrize(("length", "chunks"), [(8192, 2), (11264, 4)])
def test_skewed_experts_that_do_not_fit_lead_to_the_fewest_chunks_that_do(length, chunks):
    found = nearest("--optimizer", "lean", "--max_seq_length", str(length))
    assert found.flags == [f"--moe_chunks {chunks}"]
    assert found.estimate.most_skew >= 3


def test_many_rows_at_a_time_lead_to_accumulation_of_the_same_global_batch():
    found = nearest("--optimizer", "lean", "--per_device_train_batch_size", "8")
    assert "--per_device_train_batch_size 1" in found.flags
    assert "--gradient_accumulation_steps 64" in found.flags


def test_a_deepspeed_file_that_splits_too_little_leads_to_ours():
    found = nearest("--optimizer", "lean", "--deepspeed", "ds_configs/zero2.json")
    assert found.flags == ["--deepspeed auto"]


def test_long_rows_are_shared_before_they_are_shortened_with_as_many_in_a_step():
    found = nearest("--optimizer", "lean", "--max_seq_length", "106496")
    assert found.estimate.fits
    assert found.flags == [
        *("--moe_chunks 8", "--sequence_parallel_size 8", "--gradient_accumulation_steps 64")
    ]


def test_rows_too_long_even_for_all_gpus_of_a_machine_are_shortened():
    million = replace(A13B, max_position_embeddings=2**20)
    found = nearest("--optimizer", "lean", "--max_seq_length", "1048576", shape=million)
    assert found.estimate.fits
    assert found.estimate.run.config.data.max_seq_length < 1048576


@pytest.mark.parametrize("schedule", [[], ["--lr_scheduler_type", "linear", "--min_lr", "0"]])
def test_adapters_can_be_tried_with_any_schedule(schedule):
    arguments = ["--recipe", "full", "--model_name_or_path", "a13b", *schedule]
    run = resolve_flags(arguments, EIGHT_80GB, shape=A13B)
    asked = load_config(arguments)
    found = estimate_with([method_choices(asked)[-1]], asked, run, Hardware())
    assert found is not None
    assert found.run.config.lora.use_lora


def test_a_full_disk_leads_to_fewer_checkpoints():
    found = nearest("--optimizer", "lean", disk=10**12)
    assert found.flags == ["--save_total_limit 1"]


def test_a_disk_without_room_leads_to_nothing_that_changes_what_is_learned():
    found = nearest("--optimizer", "lean", disk=10**9)
    assert found is None


def test_what_no_change_makes_fit_is_said_to_be_so():
    assert nearest(machine=Machine(num_gpus=1, num_cores=1, gpu_memory=10**9)) is None


@pytest.mark.parametrize("memory", [24, 40, 48, 80])
def test_whatever_is_named_fits(memory):
    machine = replace(EIGHT_80GB, gpu_memory=memory * 10**9, host_memory=1000 * 10**9)
    found = nearest("--optimizer", "adamw", machine=machine)
    assert found is not None
    assert found.estimate.fits
