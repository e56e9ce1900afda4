"""What crosses between machines as they are added, against numbers worked out by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.planner.crossing import crossing_weights, num_gathers
from hunyuan_train.planner.gathered import describe_play, find_levels, play_micro_step
from hunyuan_train.planner.machine import BANDWIDTH_SHARE, GPUS
from hunyuan_train.planner.parameters import list_parameters
from hunyuan_train.planner.scaling import (
    NODE_COUNTS,
    first_bound_by_network,
    plan_crossing,
    plan_scaling,
)
from hunyuan_train.planner.speed import plan_traffic
from tests.planner.test_known_answers import estimate

# 32 layers of 64 experts, each of three matrices of 4096 by 3072, an eighth of them on each GPU.
EXPERTS_OF_GPU = 32 * 64 * 3 * 4096 * 3072 // 8


def test_experts_of_a_machine_are_gathered_twice_and_reduced_once_a_micro_step():
    plan = estimate("--recipe", "full", "--gradient_accumulation_steps", "3")
    for scaled in plan_scaling(plan.run, plan.hardware):
        num = scaled.num_nodes
        # Two bytes each, in n parts of which a GPU sends its own to the n - 1 other machines.
        assert scaled.crossing.experts == 3 * 3 * 2 * (EXPERTS_OF_GPU // num) * (num - 1)
        assert scaled.crossing.heads == 0
        # All else is cut over all GPUs, and the eight links of a machine share it.
        assert scaled.crossing.rest == pytest.approx(
            3 * 3 * 2 * 3_083_771_904 * (num - 1) / num / 8, rel=1e-3
        )
        assert scaled.network_seconds == pytest.approx(
            scaled.crossing.total / (GPUS["h100"].network_bandwidth * BANDWIDTH_SHARE)
        )


def test_a_machine_of_one_gpu_sends_all_its_parts_to_others():
    plan = estimate("--recipe", "full", machine=Machine(num_gpus=1, num_cores=8), num_nodes=16)
    traffic, crossing = plan_traffic(plan.run), plan_crossing(plan.run)
    assert crossing.experts + crossing.rest == traffic.gathers + traffic.reduction
    assert traffic.tokens == crossing.heads == 0


def test_heads_cross_where_a_row_is_shared_over_machines():
    plan = estimate("--recipe", "long", "--sequence_parallel_size", "32", num_nodes=8)
    # Of 31 other ranks of a group, seven are on the same machine.
    assert plan_crossing(plan.run).heads == plan_traffic(plan.run).heads * 24 // 31
    inside = estimate("--recipe", "long", "--sequence_parallel_size", "8", num_nodes=8)
    assert plan_crossing(inside.run).heads == 0


def _steps(plan):
    return plan.run.config.train.gradient_accumulation_steps


def test_frozen_weights_are_gathered_and_their_gradients_are_not():
    plan = estimate("--recipe", "lora", "--expert_weights", "bf16", num_nodes=2)
    steps = _steps(plan)
    # Forward, and once for a layer's backward and its second run, which comes behind the gradients.
    assert crossing_weights(plan.run)[0] == 2 * steps * 2 * EXPERTS_OF_GPU // 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--recipe", "full"],
        ["--recipe", "full", "--moe_chunks", "4"],
        ["--recipe", "lora"],
        ["--recipe", "lora", "--moe_chunks", "4"],
        ["--recipe", "lora", "--no_gradient_checkpointing"],
    ],
)
def test_weights_are_gathered_as_often_as_the_engine_asks_for_them(flags):
    run = estimate(*flags, "--gradient_accumulation_steps", "1", num_nodes=2).run
    _, played = play_micro_step(describe_play(run))
    # The engine keeps the weights of the last layers between forward and backward.
    planned = sum(num_gathers(run, one) * one.total for one in list_parameters(run))
    assert played.fetched == pytest.approx(planned, rel=0.06)


@pytest.mark.parametrize("flags", [["--recipe", "full"], ["--recipe", "lora"]], ids=str)
def test_what_is_gathered_is_the_same_on_any_number_of_machines(flags):
    one, *others = (estimate(*flags, num_nodes=num).run for num in (1, 2, 16))
    # Only where experts are on each rank once, nothing of them is cut.
    assert describe_play(one) != describe_play(others[0]) == describe_play(others[1])
    for run in (one, *others):
        as_cut = replace(describe_play(run), parameters=list_parameters(run))
        assert find_levels(as_cut) == find_levels(describe_play(run))


def test_no_curve_bends_upward_and_the_network_decides_from_some_size_on():
    plan = estimate("--recipe", "full")
    scaled = plan_scaling(plan.run, plan.hardware)
    assert [one.num_nodes for one in scaled] == list(NODE_COUNTS)
    for before, after in pairwise(scaled):
        assert before.crossing.total < after.crossing.total < 2 * before.crossing.total
        # A GPU's own work never grows: it updates fewer weights. What it waits for never shrinks.
        assert before.free_seconds >= after.free_seconds
        assert before.seconds - before.free_seconds <= after.seconds - after.free_seconds
    bound = first_bound_by_network(scaled)
    assert bound
    for one in scaled:
        assert one.is_bound_by_network == (one.num_nodes >= bound)
        assert (one.seconds > one.free_seconds) == one.is_bound_by_network
    # A network as fast as the links of a machine is never waited for.
    gpu = replace(plan.hardware.gpu, network_bandwidth=plan.hardware.gpu.node_bandwidth)
    fast = plan_scaling(plan.run, replace(plan.hardware, gpu=gpu))
    assert first_bound_by_network(fast) is None


@pytest.mark.parametrize("num_nodes", [2, 16])
def test_the_plan_of_a_size_says_the_same_as_the_table(num_nodes):
    one = estimate("--recipe", "full")
    alone = estimate("--recipe", "full", num_nodes=num_nodes)
    of_table = next(
        row for row in plan_scaling(one.run, one.hardware) if row.num_nodes == num_nodes
    )
    if alone.run.config == one.run.config:
        assert alone.speed.seconds == of_table.seconds
    scaled = plan_scaling(alone.run, alone.hardware)
    assert alone.speed.seconds == next(r for r in scaled if r.num_nodes == num_nodes).seconds
