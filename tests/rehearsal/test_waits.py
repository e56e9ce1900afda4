"""The budget of waits of a micro-step and of an optimizer step, counted in a rehearsal."""

import pytest

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
