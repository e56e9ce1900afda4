"""What the plan knows of gathered weights, against the engine, at each module of a step."""

import json
from pathlib import Path

import pytest

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.gathered import describe_play, play_micro_step
from hunyuan_train.planner.gathering import Hook
from tests.rehearsal.rehearsed import Rehearsed, rehearsed

MIB = 2**20
# Of attention, in bfloat16: on its way out of a buffer it may be counted twice, for one module.
ONE_MATRIX = 33 * MIB
HOOKS = {
    Hook.ENTER: "enter",
    Hook.ENTER_AGAIN: "enter",
    Hook.LEAVE: "leave",
    Hook.LEAVE_AGAIN: "leave",
    Hook.ENTER_BACKWARD: "enter backward",
    Hook.LEAVE_BACKWARD: "leave backward",
}
CASES = {  # flags, machines, layers
    "full": (["--recipe", "full"], 2, 2),
    "one machine": (["--recipe", "full"], 1, 2),
    "adapters": (["--recipe", "lora"], 2, 3),
    "adapters, one machine": (["--recipe", "lora"], 1, 3),
    "adapters on experts": (["--recipe", "lora", "--lora_target_modules", "all"], 2, 2),
    "quantised experts": (["--recipe", "lora", "--expert_weights", "fp8"], 2, 2),
    "experts in chunks": (["--recipe", "lora", "--moe_chunks", "4"], 2, 2),
    "selective recomputation": (
        ["--recipe", "full", "--gradient_checkpointing", "selective"], 2, 2,
    ),
    "no recomputation": (["--recipe", "full", "--no_gradient_checkpointing"], 2, 2),
}  # fmt: skip


def play(run: ResolvedRun) -> list[tuple[str, int, int]]:
    """Hook, live elements and gathered bytes of each event, as the plan has them."""
    model, played = play_micro_step(describe_play(run))
    # Modules that get their input by name never leave their backward.
    body = model.root.children[0]
    unseen = {model.root, body, body.children[0]}
    unseen |= {layer.module.children[1] for layer in model.layers}
    rows = zip(played.trace, played.counted, played.after, strict=True)
    return [
        (HOOKS[event.hook], number, elements * run.element_bytes)
        for event, number, elements in rows
        if not (event.hook is Hook.LEAVE_BACKWARD and event.module in unseen)
    ]


def compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], nodes: int, layers: int
) -> Rehearsed:
    """Rehearse, and find every event as it is planned."""
    record = tmp_path / "record.jsonl"
    monkeypatch.setenv("RECORD", str(record))
    found = rehearsed(
        *flags,
        *("--gradient_accumulation_steps", "1"),
        layers=layers,
        nodes=nodes,
        skew=3.0,
        hook="tests.rehearsal.planted.recorded_gathering",
    )
    assert found.seen["errors"] == []
    seen = [json.loads(line) for line in record.read_text().splitlines()]
    planned = play(found.run)
    assert [row[0] for row in planned] == [row[0] for row in seen]
    for (_, elements, num_bytes), (_, seen_elements, seen_bytes) in zip(planned, seen, strict=True):
        assert elements == pytest.approx(seen_elements, abs=MIB)  # those that stay gathered
        assert num_bytes == pytest.approx(seen_bytes, abs=ONE_MATRIX)
    return found


def test_adapters_on_two_machines_gather_what_is_planned(monkeypatch, tmp_path):
    found = compare(monkeypatch, tmp_path, ["--recipe", "lora"], 2, 2)
    assert found.ratio == pytest.approx(1.0, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_way_to_train_gathers_what_is_planned(name, monkeypatch, tmp_path):
    compare(monkeypatch, tmp_path, *CASES[name])
