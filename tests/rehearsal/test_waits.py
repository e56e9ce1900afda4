"""A rehearsed step: its budget of waits, and its work, which the speed model of `plan` states."""

import pytest

from hunyuan_train.planner.parameters import list_parameters
from hunyuan_train.planner.states import updated_elements
from hunyuan_train.planner.work import Item
from hunyuan_train.rehearsal.question import DOCUMENTS
from hunyuan_train.rehearsal.text import time_rows
from tests.rehearsal.rehearsed import Rehearsed, rehearsed

LAYERS = 2
SPLIT_PLAN = ("Event.synchronize", "auto_ep_layer.py")  # copied beside the work; then waited for
# The engine's own, once: at the end of gradients' reduction, and at that of a step.
REDUCTION = ("Stream.synchronize", "stage3.py")
STEP = ("torch.cuda.synchronize", "cuda_accelerator.py")
# Until it has seen a step's order of modules, the engine compares that of all ranks.
FIRST_STEPS = "whether all ranks agree"


@pytest.fixture(scope="module")
def full() -> Rehearsed:
    found = rehearsed("--recipe", "full", "--gradient_accumulation_steps", "1", layers=LAYERS)
    assert found.seen["errors"] == []
    return found


def waits(found: Rehearsed, *phases: str) -> dict[tuple[str, str], int]:
    """How often the CPU waits in some phases, by kind and file."""
    counts: dict[tuple[str, str], int] = {}
    for row in found.seen["step"]["waits"]:
        file = row["line"].partition(":")[0].rpartition("/")[2]
        if row["phase"] in phases and row["kind"] != FIRST_STEPS:
            counts[row["kind"], file] = counts.get((row["kind"], file), 0) + row["count"]
    return counts


def test_a_micro_step_waits_for_nothing_but_how_many_rows_come(full: Rehearsed) -> None:
    # Once a layer; when it is computed again the plan is known.
    assert waits(full, "forward") == {SPLIT_PLAN: LAYERS}
    assert waits(full, "backward") == {REDUCTION: 1}


@pytest.mark.slow
@pytest.mark.parametrize("modules", ["attention", "all"])
def test_adapters_wait_for_nothing_more(modules: str) -> None:
    flags = ("--recipe", "lora", "--lora_target_modules", modules)
    found = rehearsed(*flags, "--gradient_accumulation_steps", "1", layers=LAYERS)
    assert found.seen["errors"] == []
    assert waits(found, "forward") == {SPLIT_PLAN: LAYERS}
    assert waits(found, "backward") == {REDUCTION: 1}
    assert waits(found, "between") == {("tolist", "step.py"): 1}


def test_a_step_reads_its_losses_and_its_norm_at_once(full: Rehearsed) -> None:
    assert waits(full, "between") == {("tolist", "step.py"): 1}
    update = waits(full, "optimizer")
    assert update.pop(STEP) == 1
    assert update == {REDUCTION: LAYERS}  # exact weights of routers, of streams that are done


def test_ranks_are_asked_for_weights_before_a_step_and_once_for_losses_and_norm(
    full: Rehearsed,
) -> None:
    calls = {"between": 0, "optimizer": 0}
    for row in full.seen["step"]["collectives"]:
        if row["phase"] in calls and row["name"] == "allreduce":
            calls[row["phase"]] += row["calls"]
    assert calls == {"between": 2, "optimizer": 0}


def test_a_layer_that_runs_again_ends_before_its_experts_last_product(full: Rehearsed) -> None:
    step = full.seen["step"]
    counts = {
        phase: sum(
            row["count"]
            for row in step["kernels"]
            if (row["phase"], row["operator"]) == (phase, "aten._grouped_mm")
        )
        for phase in ("forward", "backward")
    }
    # Gate, up and down; again without down; gradients of rows and of weights.
    assert counts == {"forward": 3 * LAYERS, "backward": (2 + 6) * LAYERS}
    sent = {"forward": 0, "backward": 0}
    for row in step["collectives"]:
        if row["name"].startswith("alltoall") and row["phase"] in sent:
            sent[row["phase"]] += row["calls"]
    # Counts of rows, rows and their weights, and outputs back; again rows and weights; gradients.
    assert sent == {"forward": 4 * LAYERS, "backward": (2 + 3) * LAYERS}


OTHERS = {
    "fused": ("--recipe", "full", "--use_liger_kernel"),
    "adapters": ("--recipe", "lora"),
    "adapters on experts": ("--recipe", "lora", "--lora_target_modules", "all"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_runs_take_as_long_as_the_plan_says(name: str) -> None:
    found = rehearsed(*OTHERS[name], "--gradient_accumulation_steps", "1", layers=LAYERS)
    assert found.seen["errors"] == []
    compare_times(found)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nf4", "int4", "fp8"])
def test_decoding_experts_takes_as_long_as_the_plan_says(form: str) -> None:
    flags = ("--recipe", "one_gpu", "--expert_weights", form, "--gradient_accumulation_steps", "1")
    compare_times(rehearsed(*flags, layers=1, gpus=1), of_all=0.03)


@pytest.mark.slow
def test_each_chunk_of_tokens_decodes_all_experts_again() -> None:
    flags = ("--recipe", "one_gpu", "--moe_chunks", "4", "--gradient_accumulation_steps", "1")
    found = rehearsed(*flags, layers=1, gpus=1)
    planned, counted = {name: times for name, *times in time_rows(found.seen, found.run, 1.25)}[
        Item.CODES.value
    ]
    assert planned == pytest.approx(counted, rel=0.03)


def test_each_item_takes_as_long_as_the_plan_says(full: Rehearsed) -> None:
    compare_times(full)


def compare_times(found: Rehearsed, *, of_all: float = 0.02) -> None:
    """Times of all items, planned and counted."""
    rows = {name: times for name, *times in time_rows(found.seen, found.run, 1.25)}
    # Documents of a sixth of a row have a sixth of the plan's scores, if little else.
    attention = rows.pop(Item.ATTENTION.value)
    assert attention[0] / DOCUMENTS < attention[1] < attention[0]
    total = sum(counted for _, counted in rows.values())
    for name, (planned, counted) in rows.items():
        assert planned == pytest.approx(counted, rel=0.1, abs=0.005 * total), name
    assert sum(planned for planned, _ in rows.values()) == pytest.approx(total, rel=of_all)


def test_the_update_is_one_kernel_a_parameter_and_moves_ten_bytes_a_weight(
    full: Rehearsed,
) -> None:
    step = full.seen["step"]
    kernels = {row["operator"]: row["count"] for row in step["kernels"]}
    updated = [one for one in list_parameters(full.run) if one.is_trained]
    assert kernels["Triton: the update of lean"] == sum(one.count for one in updated)
    moved = {
        row["item"]: row["bytes"] / updated_elements(full.run)
        for row in step["work"]
        if row["pass"] == "optimizer"
    }
    assert moved[Item.UPDATE.value] == pytest.approx(10, abs=0.2)
    # They are clipped as the update reads them. Nothing else touches every weight but the norm.
    assert moved.get(Item.ZERO.value, 0) < 0.2
    norm = next(
        row for row in step["work"] if (row["pass"], row["item"]) == ("between", Item.OTHER.value)
    )
    assert norm["bytes"] / updated_elements(full.run) == pytest.approx(2, abs=0.2)
