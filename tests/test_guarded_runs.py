"""Each policy of the router guardian, in a whole run whose routing diverges from the base model."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.checkpoint.folder import list_checkpoints
from tests.conftest import Finished, start_train
from tests.wandb_files import read_alerts

STEPS = 6
SETTINGS = (
    *("--recipe", "tiny", "--max_steps", str(STEPS), "--logging_steps", "1", "--eval_steps", "0"),
    *("--save_steps", "1", "--no_export", "--sample_answers", "false"),
    # Random weights at the demo's rate, without a warm-up: routers collapse at the second step.
    *("--warmup_ratio", "0", "--report_to", "wandb"),
)
pytestmark = pytest.mark.slow


def run_guarded(folder: Path, policy: str) -> tuple[Finished, list[dict[str, Any]], int]:
    """A run with a policy: how it ended, what it logged, and the step of the first alarm."""
    output_dir = folder / "run"
    arguments = (*SETTINGS, "--router_guardian", policy, "--output_dir", str(output_dir))
    finished = start_train(*arguments, cwd=folder)
    assert finished.returncode in (0, 1), finished.stderr
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    said = (output_dir / "log" / "rank0.txt").read_text()
    alarms = [line for line in said.splitlines() if "routing diverged from the base model" in line]
    assert alarms, said
    assert alarms[0].split("step ")[1].split(":")[0].isdecimal()
    return finished, lines, int(alarms[0].split("step ")[1].split(":")[0])


def read_routers(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The routers' weights in a checkpoint, by rank and name."""
    return {
        f"{file.name} {name}": values
        for file in sorted(checkpoint.glob("rank-*.safetensors"))
        for name, values in load_file(file).items()
        if name.startswith("master:") and ".mlp.router." in name
    }


def are_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(autouse=True)
def stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_warning_reaches_the_tracker_and_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    finished, lines, _ = run_guarded(tmp_path, "warn")
    assert finished.returncode == 0, finished.stderr
    assert len(lines) == STEPS
    assert "routing diverged from the base model" in finished.stderr
    assert any("the routers left" in text for text in read_alerts(tmp_path / "run"))
    assert "routing diverged from the base model" in (tmp_path / "run/report.html").read_text()


def test_a_stop_names_the_remedy_and_leaves_checkpoints(tmp_path: Path) -> None:
    finished, lines, step = run_guarded(tmp_path, "stop")
    assert finished.returncode == 1
    assert "policy: stop" in finished.stderr
    assert "freeze the routers with --freeze_router" in finished.stderr
    assert step == len(lines) + 1
    assert list_checkpoints(tmp_path / "run")


def test_the_balance_loss_is_on_from_the_next_step(tmp_path: Path) -> None:
    finished, lines, step = run_guarded(tmp_path, "aux_loss")
    assert finished.returncode == 0, finished.stderr
    for line in lines:
        assert (line["router_loss"] > 0) == (line["step"] > step)


def test_routers_are_held_from_the_next_step(tmp_path: Path) -> None:
    finished, _, step = run_guarded(tmp_path, "freeze_router")
    assert finished.returncode == 0, finished.stderr
    routers = [read_routers(checkpoint) for checkpoint in list_checkpoints(tmp_path / "run")]
    assert routers[0]
    assert len(routers) == STEPS
    for number, (before, after) in enumerate(pairwise(routers), start=1):
        assert are_same(before, after) == (number >= step), number
