"""What is known of the released model, 80.4 B parameters, on machines of eight GPUs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.planner.component import gibibytes, gigabytes
from hunyuan_train.planner.estimate import Estimate, estimate_run
from hunyuan_train.planner.machine import GPUS, Hardware
from hunyuan_train.planner.memory import ALLOWANCES, BALANCED, plan_memory
from hunyuan_train.planner.speed import plan_speed
from hunyuan_train.planner.states import gradient_bytes, optimizer_bytes, weight_bytes
from hunyuan_train.planner.text import describe_shortage
from tests.config.resolved import resolve_flags

EIGHT_80GB = Machine(num_gpus=8, num_cores=8, gpu_memory=80 * 10**9)
GIB = 2**30
REPOSITORY = Path(__file__).parents[2]


def estimate(*flags: str, machine: Machine = EIGHT_80GB, num_nodes: int = 1) -> Estimate:
    arguments = ["--model_name_or_path", "a13b", *flags]
    slots = [machine.num_gpus] * num_nodes
    return estimate_run(resolve_flags(arguments, machine, shape=A13B, slots=slots), Hardware())


def state_bytes(plan: Estimate) -> float:
    return weight_bytes(plan.run) + gradient_bytes(plan.run) + optimizer_bytes(plan.run)


def test_float32_adamw_needs_150_gib_a_gpu_and_is_refused():
    plan = estimate("--recipe", "full", "--optimizer", "adamw")
    # 16 bytes a parameter: 80,393,183,232 x 16 / 8 = 149.7 GiB, and the routers' float32 weights.
    assert state_bytes(plan) / GIB == pytest.approx(149.8, abs=0.1)
    assert not plan.fits
    (shortage,) = plan.shortages
    assert "150 GiB of it for weights, gradients and optimizer" in describe_shortage(shortage)


def test_lean_needs_55_gib_of_states_and_fits():
    plan = estimate("--recipe", "full")
    assert plan.run.config.optimizer.optimizer == "lean"
    # 5.879 bytes a parameter: 2 weights, 2 gradients, 15 bits of states and their scales; and the
    # float32 weights of routers, whole on each GPU, and their float32 masters.
    assert state_bytes(plan) / GIB == pytest.approx(55.06, abs=0.01)
    assert 8 * state_bytes(plan) / count_parameters(A13B).total == pytest.approx(5.883, abs=0.001)
    assert plan.fits
    assert 60 < plan.memory.device_peak / GIB < 74.5


def test_a_skewed_step_is_planned_for_and_a_balanced_one_shown_beside_it():
    plan = estimate("--recipe", "full")
    assert plan.memory == plan_memory(plan.run, imbalance=3.0)
    assert plan.balanced.device_peak < plan.memory.device_peak
    most = plan.most_skew
    assert 3 < most < 8
    room = EIGHT_80GB.gpu_memory
    assert plan_memory(plan.run, imbalance=most).device_peak <= room
    assert plan_memory(plan.run, imbalance=most + 0.02).device_peak > room
    # A balanced step of longer rows would fit, a skewed one does not, and so the plan is refused.
    longer = estimate("--recipe", "full", "--max_seq_length", "8192")
    assert longer.balanced.device_peak < room < longer.memory.device_peak
    assert 1 < longer.most_skew < 3
    assert not longer.fits
    chunked = estimate("--recipe", "full", "--max_seq_length", "8192", "--moe_chunks", "2")
    assert chunked.fits
    assert chunked.most_skew > 3


def test_experts_that_no_other_ranks_use_cannot_be_skewed():
    plan = estimate("--recipe", "full", "--expert_parallel_size", "1")
    assert plan.balanced.device == plan_memory(plan.run, imbalance=8.0).device
    assert plan.most_skew is None
    everything = estimate("--recipe", "lora")
    assert everything.most_skew == 8  # all rows of all eight ranks
    peaks = [plan_memory(everything.run, imbalance=skew).device_peak for skew in (8.0, 99.0)]
    assert peaks[0] == peaks[1]


def test_nccl_takes_more_where_ranks_exchange_tokens():
    def lines(*flags):
        return {line.name: line.num_bytes for line in estimate(*flags).memory.device}

    # NVIDIA/nccl#1685: 1.06 GB before and 4.34 GB after the first all-to-all of eight H100.
    split = lines("--recipe", "full")
    assert split["CUDA context and NCCL"] + split["NCCL's all-to-all"] == 4_340_000_000
    assert "NCCL's all-to-all" not in lines("--recipe", "full", "--expert_parallel_size", "1")
    plan = estimate("--recipe", "full")
    beside = plan.memory.device_peak - plan.memory.allocated_peak
    assert beside == sum(split[name] for name in ALLOWANCES)


def test_adapters_fit_with_room_for_long_rows():
    plan = estimate("--recipe", "lora", "--max_seq_length", "8192")
    assert state_bytes(plan) / GIB == pytest.approx(19.0, abs=0.5)
    assert plan.fits


def test_rows_of_256k_fit_four_machines_and_with_adapters_one():
    full = estimate("--recipe", "long", num_nodes=4)
    adapters = estimate("--recipe", "long", "--use_lora")
    # 59.7 and 38.1 GiB, of which 4.6 are the driver's and NCCL's, and 6.2 and 4.8 holes.
    for plan, used in ((full, 59.7), (adapters, 38.1)):
        assert plan.fits
        assert plan.run.num_tokens == 2**18 // 8
        assert plan.memory.device_peak / GIB == pytest.approx(used, abs=0.5)
        # Inputs of 32 layers, 4,096 values of two bytes a token, to host memory and back.
        inputs = 32 * 4096 * 2 * 2**15
        lines = {line.name: line.num_bytes for line in plan.memory.host}
        assert lines["layers' inputs, pinned"] == inputs
        assert plan.speed.traffic.inputs == 2 * inputs
    assert not estimate("--recipe", "long").fits


def test_an_offloaded_optimizer_takes_18_bytes_a_parameter_of_the_host_or_more():
    plan = estimate("--recipe", "full", "--optimizer", "offload")
    assert plan.fits
    lines = {line.name: 8 * line.num_bytes for line in plan.memory.host}
    assert lines["optimizer"] == pytest.approx(12 * count_parameters(A13B).total, rel=1e-4)
    # 20.1 GB of gradients a rank, page-locked: torch takes the next power of two.
    assert lines["gradients, pinned"] == 8 * 2**35
    exact = 4 * count_parameters(A13B).total
    assert exact < lines["float32 gradients, pinned"] < 1.2 * exact
    assert plan.host_per_node == pytest.approx(1620e9, rel=0.02)


def test_host_memory_refuses_what_the_gpus_could_hold():
    small = replace(EIGHT_80GB, host_memory=1000 * 10**9)
    plan = estimate("--recipe", "full", "--optimizer", "offload", machine=small)
    (shortage,) = plan.shortages
    assert shortage.what == "a machine's host memory"


def test_without_split_experts_each_rank_gathers_whole_layers():
    split = estimate("--recipe", "full", "--optimizer", "lean")
    whole = estimate("--recipe", "full", "--optimizer", "lean", "--expert_parallel_size", "1")
    lines = [{line.name: line.num_bytes for line in plan.memory.device} for plan in (split, whole)]
    # 64 experts of one layer: 64 x 3 x 4096 x 3072 weights of two bytes.
    assert lines[1]["gathered weights"] == 64 * 3 * 4096 * 3072 * 2
    assert lines[0]["gathered, layer backward"] < lines[1]["gathered weights"] / 2
    # Splitting experts sends about a tenth of the bytes of gathering them.
    assert split.speed.traffic.total < whole.speed.traffic.total / 5


def test_what_a_file_leaves_to_the_engine_is_planned_as_the_engine_has_it(tmp_path):
    content = json.loads((REPOSITORY / "ds_configs/zero3_ep.json").read_text())
    section = content["zero_optimization"]
    for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size"):
        section[name] = "auto"
    for name in ("stage3_max_live_parameters", "stage3_max_reuse_distance"):
        del section[name]
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(content))
    whole, ours = (
        estimate("--recipe", "full", "--deepspeed", str(file)),
        estimate("--recipe", "full"),
    )
    lines = [{line.name: line.num_bytes for line in plan.memory.device} for plan in (whole, ours)]
    # 500 M elements of a bucket instead of 200 M, and 1,000 M fetched ahead instead of 400 M.
    assert lines[0]["engine buckets"] == 2.5 * lines[1]["engine buckets"]
    assert lines[0]["gathered, layer again"] > 1.5 * lines[1]["gathered, layer again"]


def test_a_checkpoint_of_all_states_takes_12_bytes_a_parameter():
    plan = estimate("--recipe", "full", "--optimizer", "offload")
    assert plan.disk.checkpoint == pytest.approx(965e9, rel=0.001)
    assert plan.disk.export == pytest.approx(161e9, rel=0.002)
    assert plan.disk.num_kept == 3  # two are kept, and the third is written before one goes
    lean = estimate("--recipe", "full", "--optimizer", "lean")
    assert lean.disk.checkpoint / count_parameters(A13B).total == pytest.approx(3.879, abs=0.001)


def test_a_full_step_does_six_operations_a_weight_and_token_and_up_to_two_more_when_recomputed():
    once = ("--recipe", "full", "--gradient_accumulation_steps", "1")
    again, plain = (
        plan_speed(plan.run, plan.hardware, imbalance=BALANCED).flops
        for plan in (estimate(*once), estimate(*once, "--no_gradient_checkpointing"))
    )
    # And two for the output layer, whose logits are made again in any case; attention besides.
    active = count_parameters(A13B).active
    assert plain / 4096 == pytest.approx(6 * active, rel=0.07)
    # The output layer and the last product of experts are not made again.
    spared = 2 * A13B.num_hidden_layers * A13B.moe_topk * 4096 * 3072
    assert (again - plain) / 4096 == pytest.approx(2 * active - spared, rel=0.05)


def test_experts_that_one_rank_has_most_rows_of_slow_all_ranks_down():
    plan = estimate("--recipe", "full")
    speeds = [
        plan_speed(plan.run, plan.hardware, imbalance=skew).tokens_per_gpu for skew in (1, 2, 3, 8)
    ]
    assert speeds == sorted(speeds, reverse=True)
    # Twice the rows are twice the time of what is done for each, which is most of a step.
    assert 1.4 < speeds[0] / speeds[1] < 1.8
    # A rank cannot get more than all tokens of all ranks.
    everything = plan_speed(plan.run, plan.hardware, imbalance=100)
    assert everything.tokens_per_gpu == pytest.approx(speeds[3])
    alone = estimate("--recipe", "full", "--expert_parallel_size", "1")
    for skew in (1, 3):
        told = plan_speed(alone.run, alone.hardware, imbalance=skew)
        assert told.seconds == pytest.approx(alone.speed.seconds)


def test_the_predicted_speed_is_that_of_a_run_at_a_third_of_the_peak_or_less():
    plan = estimate("--recipe", "full", "--optimizer", "lean")
    per_gpu = plan.speed.tokens_per_second / 8
    useful = 6 * count_parameters(A13B).active * per_gpu / plan.hardware.gpu.bf16_flops
    assert 0.2 < useful < 0.4


def test_few_bytes_are_not_shown_as_none():
    assert (gigabytes(50_200_000), gibibytes(50_200_000)) == ("50.2 MB", "47.9 MiB")
    assert (gigabytes(80e9), gibibytes(80e9)) == ("80.0 GB", "74.5 GiB")
    assert gibibytes(149.8 * GIB, digits=0) == "150 GiB"


def test_one_checkpoint_is_one():
    machine = replace(EIGHT_80GB, host_memory=2 * 10**12)
    arguments = ["--model_name_or_path", "a13b", "--recipe", "lora"]
    for steps, name in (("0", "1 checkpoint"), ("0.1", "4 checkpoints")):
        run = resolve_flags([*arguments, "--save_steps", steps], machine, shape=A13B, slots=[8])
        (shortage,) = estimate_run(run, Hardware(disk=10**8)).shortages
        assert f"{name} " in describe_shortage(shortage)


@pytest.mark.parametrize(
    ("name", "gigabytes_of_it"), [("l40s", 48), ("a6000", 48), ("rtx4090", 24)]
)
def test_a_small_card_has_speeds_of_its_own(name, gigabytes_of_it):
    gpu, h100 = GPUS[name], GPUS["h100"]
    assert gpu.memory_bytes == gigabytes_of_it * 10**9
    assert 1 / 7 < gpu.bf16_flops / h100.bf16_flops < 1 / 2
    run = estimate("--recipe", "one_gpu", machine=replace(EIGHT_80GB, num_gpus=2)).run
    seconds = [estimate_run(run, Hardware(gpu=one)).speed.seconds for one in (h100, gpu)]
    assert seconds[1] > 2 * seconds[0]
