"""What a page says in words: state, cost, and a verdict on each thing that can go wrong."""

import json
import time
from pathlib import Path

import pytest

from hunyuan_train.config.run_files import STATUS
from hunyuan_train.model.expert_formats import MOST_DIVERGENCE
from hunyuan_train.report.record import RunRecord, read_run
from hunyuan_train.report.state import find_state
from hunyuan_train.report.verdict import Finding, judge
from tests.report.runs import change_line, make_run, write_lines

NOW = 1_800_000_000.0


def write_status(folder: Path, *tries: dict, updated: float = NOW) -> None:
    whole = {"exit_code": None, "words": "", "ended": None, "num_processes": 8}
    content = {"updated": updated, "launcher": "head", "tries": [whole | one for one in tries]}
    host = {"name": "10.0.0.1", "heard_at": updated, "num_ranks": 8, "step": 1000}
    content["hosts"] = [host | {"doing": "saving", "is_over": False}]
    (folder / STATUS).write_text(json.dumps(content))


def verdict(run: RunRecord) -> dict[str, Finding]:
    return {one.about: one for one in judge(run, find_state(run, NOW))}


def evaluated(tmp_path: Path, *losses: float) -> RunRecord:
    rows = [
        {"step": 10 * number, "loss": 3 - number / 10, "eval_loss": loss}
        for number, loss in enumerate(losses, start=1)
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    return read_run(tmp_path)


def test_better_held_out_loss_is_good(tmp_path: Path) -> None:
    found = verdict(evaluated(tmp_path, 3.0, 2.5, 2.4))["held-out loss"]
    assert found.kind == "good"
    assert "improved by 20.0%, from 3.0000 at step 10 to 2.4000 at step 30" in found.text
    assert "more epochs may help" in found.text


def test_overfitting_names_the_step_to_take(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 3.0, 2.0, 2.3, 2.6)
    found = verdict(run)["held-out loss"]
    assert found.kind == "warn"
    assert "best at step 20 (2.0000) and has risen to 2.6000 since" in found.text
    assert "training loss fell to 2.6000: it is overfitting" in found.text
    assert "No checkpoint is left of step 20" in found.text
    for step in (10, 20):
        checkpoint = tmp_path / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    found = verdict(run)["held-out loss"]
    assert "Export that step:" in found.text
    assert f"export {tmp_path}/checkpoints/step-000020 {tmp_path}/best" in found.command


@pytest.mark.parametrize(
    ("losses", "kind", "words"),
    [
        ((2.0, 2.0, 1.999), "warn", "has not improved"),
        ((2.0,), "note", "One evaluation shows no trend"),
        ((3.0, 2.0, 2.01), "good", "now 2.0100, a difference within noise"),
        ((), "warn", "--eval_fraction"),
    ],
)
def test_other_courses_of_held_out_loss(
    tmp_path: Path, losses: tuple[float, ...], kind: str, words: str
) -> None:
    run = evaluated(tmp_path, *losses) if losses else read_run(make_run(tmp_path / "one"))
    found = verdict(run)["held-out loss"]
    assert found.kind == kind
    assert words in found.text


def test_routing_memory_steps_and_saves_are_judged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    found = verdict(read_run(folder))
    assert found["memory"].kind == found["speed"].kind == found["routing"].kind == "good"
    assert found["bad steps"].kind == "good"
    assert "None was skipped" in found["bad steps"].text
    log = folder / "log" / "rank0.txt"
    words = "step 9: routing diverged from the base model: layer 0: its routing drifted by 0.7"
    log.write_text(f"2026-03-02 10:00:00,000 WARNING hunyuan_train.x: {words}\n")
    write_lines(folder / "quarantine.jsonl", [{"step": 20, "is_skipped": True}, {"step": 30}])
    change_line(folder, "metrics.jsonl", 3, memory_gib=75.0)
    change_line(folder, "metrics.jsonl", 99, checkpoint_failures=2, checkpoint_step=900)
    found = verdict(read_run(folder))
    assert found["routing"].kind == "bad"
    assert "--freeze_router" in found["routing"].text
    assert (
        "2 steps had an abnormal loss or gradient (20, 30), and 1 of them"
        in found["bad steps"].text
    )
    assert "more than the plan" in found["memory"].text
    assert "2 checkpoints could not be written, and the last saved one is of step 900" in (
        found["checkpoints"].text
    )


def test_more_dead_experts_than_at_first_are_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    change_line(folder, "metrics.jsonl", 0, dead_experts=1)
    change_line(folder, "metrics.jsonl", 99, dead_experts=4)
    found = verdict(read_run(folder))["routing"]
    assert found.kind == "note"
    assert "more experts than at first" in found.text
    assert "4 experts with nearly no tokens, summed over all layers" in found.text
    change_line(folder, "metrics.jsonl", 0, dead_experts=4)
    found = verdict(read_run(folder))["routing"]
    assert found.kind == "note"  # dead experts are no health, even the base model's own
    assert "no more experts than at first" in found.text


def make_stopped(folder: Path, **settings: object) -> Path:
    """A run that stopped after step 22, logged each 10 steps, before its first evaluation."""
    write_lines(folder / "metrics.jsonl", [{"step": step, "loss": 2.0} for step in (10, 20)])
    start = {"step": 0, "time": "now", "num_processes": 8, "device": "CPU", "total_steps": 40}
    write_lines(folder / "starts.jsonl", [start | {"versions": {}, "git": None, "data": {}}])
    checkpoint = folder / "checkpoints" / "step-000022"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text(json.dumps({"train": settings}))
    (folder / "log").mkdir()
    write_status(folder, {"started": NOW - 1800, "ended": NOW, "outcome": "stopped"})
    return folder


def test_a_stopped_run_is_told_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "r c"
    folder.mkdir()
    make_stopped(folder, output_dir=str(folder), eval_fraction=0.02, eval_steps=40)
    status = json.loads((folder / STATUS).read_text())
    status["hosts"][0]["step"] = 22
    (folder / STATUS).write_text(json.dumps(status))
    found = verdict(read_run(folder))
    assert found["end"].text == "It was stopped after step 22 of 40. To resume it:"
    assert "--output_dir" not in found["end"].command
    assert "has reached no evaluation" in found["held-out loss"].text
    assert "eval_steps is 40" in found["held-out loss"].text
    status["hosts"][0]["step"] = None  # then the checkpoint says it
    (folder / STATUS).write_text(json.dumps(status))
    assert "after step 22 of 40" in verdict(read_run(folder))["end"].text
    renamed = folder.rename(tmp_path / "r c.previous")
    command = verdict(read_run(renamed))["end"].command
    assert f"--output_dir '{renamed}' --resume_from_checkpoint auto" in command


def test_memory_near_the_gpus_limit_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    plan = {"memory_gib": 64.0, "tokens_per_second": 2000.0, "gpu_memory_gib": 79.0}
    change_line(folder, "starts.jsonl", 0, device="NVIDIA H100", plan=plan)
    change_line(folder, "metrics.jsonl", 50, gpu_memory_reserved_gib=77.0)
    found = verdict(read_run(folder))["memory"]
    assert found.kind == "warn"
    assert "holds 77.0 of the GPU's 79: near the limit" in found.text


@pytest.mark.parametrize(
    ("divergence", "kind", "words"),
    [
        (MOST_DIVERGENCE, "note", "and 6.9000 with the original weights (KL 0.0500 per token)."),
        (
            0.31,
            "warn",
            "per token). That is a lot: use a more accurate --expert_weights.",
        ),
    ],
)
def test_what_quantised_experts_cost_before_step_0_is_told(
    tmp_path: Path, divergence: float, kind: str, words: str
) -> None:
    folder = make_run(tmp_path / "run")
    assert "experts" not in verdict(read_run(folder))
    held_out = {"perplexity_before": 6.9, "perplexity_after": 7.25, "kl_divergence": divergence}
    measured = {"expert_weights": "nf4", "held_out": {"all": held_out}}
    change_line(folder, "starts.jsonl", 0, experts=measured)
    found = verdict(read_run(folder))["experts"]
    assert found.kind == kind
    assert found.text.startswith(
        "Its frozen experts are kept in nf4. Before the first step, perplexity on held-out "
        "dialogues was 7.2500, "
    )
    assert found.text.endswith(words)


def test_state_and_cost_come_from_the_launcher(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    change_line(folder, "starts.jsonl", 0, total_steps=2000, device="NVIDIA H100")
    first = {"started": NOW - 10_000, "ended": NOW - 6_400, "outcome": "failed"}
    write_status(folder, first, {"started": NOW - 1800, "outcome": "running"})
    state = find_state(read_run(folder), NOW + 5)
    assert (state.phase, state.doing, state.step) == ("running", "saving", 1000)
    assert state.seconds == pytest.approx(3600 + 1805)
    assert state.process_hours == pytest.approx(8 * 5405 / 3600)
    assert state.started == NOW - 10_000
    assert state.is_on_gpu
    assert state.num_tries == 2
    ending = read_run(folder)
    ending.is_complete = True  # it knows before its launcher does
    assert find_state(ending, NOW + 5).phase == "done"
    lost = find_state(read_run(folder), NOW + 300)
    assert lost.phase == "lost"
    assert "--resume_from_checkpoint auto" in lost.why
    last = {"started": NOW - 1800, "ended": NOW, "outcome": "failed", "words": "error: rank 3 died"}
    write_status(folder, first, last)
    run = read_run(folder)
    state = find_state(run, NOW + 300)
    assert (state.phase, state.ended) == ("failed", NOW)
    assert judge(run, state)[0].text.endswith("error: rank 3 died")


def test_time_left_is_by_the_clock_between_recent_lines(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    for number in range(100):
        change_line(folder, "metrics.jsonl", number, time=NOW + 60 * number)
    change_line(folder, "starts.jsonl", 0, total_steps=1500)
    write_status(folder, {"started": NOW, "outcome": "running"}, updated=NOW + 5940)
    state = find_state(read_run(folder), NOW + 5950)
    assert state.seconds_left == pytest.approx(50 * 60)  # 500 steps, a line each 10 steps


def test_a_run_without_a_launcher_is_known_by_its_lines(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    now = time.time()
    assert find_state(read_run(folder), now).phase == "running"
    quiet = find_state(read_run(folder), now + 3600)
    assert quiet.phase == "unknown"
    change_line(folder, "starts.jsonl", 0, total_steps=1000)
    assert find_state(read_run(folder), now + 3600).phase == "done"
