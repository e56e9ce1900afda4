from dataclasses import replace

import pytest
from rich.console import Console

from hunyuan_train.config.load import load_config
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.job import restart
from hunyuan_train.launcher.job.outcome import Outcome
from hunyuan_train.launcher.job.restart import run_until_done

DONE = Outcome(reason="done", exit_code=0)
CRASH = Outcome(reason="failed", exit_code=1, words="error: a crash", step=5)
LOST = Outcome(reason="lost", exit_code=74, words="error: gone", lost=(Host("b", 1),), step=5)
HUNG = Outcome(reason="hung", exit_code=1, words="error: hung", step=5)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs with given outcomes; a number stands for a new checkpoint before the next outcome."""
    monkeypatch.setattr(restart.time, "sleep", lambda _: None)
    console = Console(record=True, width=300)

    def start(*outcomes, max_restarts=2, resume=()):
        left, seen = list(outcomes), []

        def attempt(config):
            seen.append(config.checkpoints.resume_from_checkpoint)
            while isinstance(left[0], int):
                folder = tmp_path / f"checkpoints/step-{left.pop(0):06d}"
                folder.mkdir(parents=True)
                (folder / "manifest.json").touch()
            return left.pop(0)

        flags = ["--output_dir", str(tmp_path), "--max_restarts", str(max_restarts), *resume]
        exit_code = run_until_done(load_config(flags), attempt, console)
        return exit_code, seen, console.export_text()

    return start


def test_a_failed_run_goes_on_from_the_newest_checkpoint(run, tmp_path):
    exit_code, seen, said = run(4, CRASH, DONE)
    assert exit_code == 0
    assert seen == [None, "auto"]
    assert "error: a crash" in said
    assert "restart 1 of 2 from step-000004" in said
    assert '"exit_code": 1' in (tmp_path / "log/failure-1.json").read_text()


def test_a_run_from_a_given_checkpoint_starts_there_again_until_it_has_its_own(run):
    resume = ("--resume_from_checkpoint", "other/checkpoints/step-000003")
    _, seen, said = run(LOST, 4, CRASH, DONE, resume=resume)
    assert seen == [resume[1], resume[1], "auto"]
    assert f"restart 1 of 2 from {resume[1]}" in said
    assert "restart 1 of 2 from step-000004" in said


def test_without_max_restarts_nothing_is_tried_again(run):
    exit_code, seen, _ = run(CRASH, max_restarts=0)
    assert exit_code == 1
    assert len(seen) == 1


def test_the_same_step_failing_twice_is_not_the_hardware(run):
    exit_code, seen, said = run(CRASH, CRASH, max_restarts=9)
    assert exit_code == 1
    assert len(seen) == 2
    assert "failed twice after step 5" in said


def test_lost_hosts_and_hangs_count_only_against_the_number(run):
    _, seen, said = run(LOST, HUNG, LOST)
    assert len(seen) == 3
    assert "2 restarts (--max_restarts) led to no new checkpoint" in said


def test_a_new_checkpoint_allows_as_many_restarts_again(run):
    exit_code, seen, _ = run(LOST, LOST, 4, LOST, LOST, 8, LOST, DONE)
    assert exit_code == 0
    assert len(seen) == 6


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(reason="stopped", exit_code=130),
        Outcome(reason="stopped", exit_code=75),
        replace(CRASH, exit_code=2),
        replace(CRASH, exit_code=75),
        Outcome(reason="unready", exit_code=74),
    ],
)
def test_a_stop_and_a_wrong_setting_are_not_tried_again(run, outcome):
    exit_code, seen, _ = run(4, outcome)
    assert exit_code == outcome.exit_code
    assert len(seen) == 1
