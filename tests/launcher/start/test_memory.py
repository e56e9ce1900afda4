"""A run is planned before it starts, on the memory that this machine has."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from hunyuan_train.checkpoint.folder import checkpoint_folder
from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.probe import host_memory
from hunyuan_train.launcher.start.launch import launch
from hunyuan_train.launcher.start.memory import (
    check_memory,
    free_disk,
    replaced_bytes,
)
from hunyuan_train.launcher.start.prepare import prepare_run
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.planner.states import optimizer_bytes

CPU = Machine(num_gpus=0, num_cores=2, host_memory=8 * 2**30)


def resolved(tmp_path, *flags, machine=CPU):
    arguments = ["--recipe", "tiny", "--output_dir", str(tmp_path / "run"), *flags]
    return resolve_here(load_config(arguments), machine=machine)


def test_what_fits_is_said_in_one_line(tmp_path, capsys):
    run = resolved(tmp_path)
    check_memory(prepare_run(run), Console(stderr=True))
    said = capsys.readouterr().err
    assert said.startswith("memory     1.")
    assert "of disk" in said


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path):
    run = resolved(tmp_path, machine=replace(CPU, host_memory=2**30))
    with pytest.raises(ConfigError, match=r"host memory would need 1.* and has 1\.1 GB: process"):
        launch(run, pytest.fail, is_dry_run=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("free", [1, 10**6])
def test_a_disk_without_room_is_no_reason_for_a_smaller_model(tmp_path, monkeypatch, free):
    monkeypatch.setattr("hunyuan_train.launcher.start.memory.free_disk", lambda folder: free)
    with pytest.raises(
        ConfigError, match=r"the disk would need .*; make room for [\d.]+ MB"
    ) as caught:
        check_memory(prepare_run(resolved(tmp_path)), Console(stderr=True))
    assert "smaller model" not in str(caught.value)
    assert "--use_lora" not in str(caught.value)


def test_long_rows_are_refused_with_the_length_that_fits(tmp_path):
    small = replace(CPU, host_memory=131 * 10**7)
    run = resolved(tmp_path, "--max_seq_length", "4096", machine=small)
    with pytest.raises(ConfigError, match=r"the nearest plan that fits: .*--max_seq_length"):
        check_memory(prepare_run(run), Console(stderr=True))


def test_force_plan_starts_it_all_the_same_and_says_why_it_should_not(tmp_path, capsys):
    run = resolved(tmp_path, "--force_plan", machine=replace(CPU, host_memory=2**30))
    assert launch(run, pytest.fail, is_dry_run=True) == 0
    said = capsys.readouterr().err
    assert "started all the same, as force_plan says: a machine's host memory would need" in said


def test_several_hosts_share_the_states(tmp_path):
    config = load_config(["--recipe", "tiny", "--output_dir", str(tmp_path / "run")])
    run = resolve_here(config, machine=CPU, slots=[2, 2, 2])
    alone = resolve_here(config, machine=CPU)
    assert optimizer_bytes(run) < 0.4 * optimizer_bytes(alone)


def test_unequal_hosts_are_planned_by_the_one_with_most_processes(tmp_path):
    config = load_config(["--recipe", "tiny", "--output_dir", str(tmp_path / "run")])
    small = replace(CPU, num_cores=4, host_memory=10**9)
    shares = []
    for slots in ([4, 4], [2, 4]):
        run = resolve_here(config, machine=small, slots=slots)
        with pytest.raises(ConfigError) as refused:
            check_memory(prepare_run(run), Console(stderr=True))
        shares.append(float(re.search(r"optimizer ([\d.]+) MB", str(refused.value))[1]))
    # Four processes on the fullest host; each has a sixth of the states instead of an eighth.
    assert shares[1] / shares[0] == pytest.approx(8 / 6, rel=0.02)


def test_unknown_memory_refuses_nothing(tmp_path):
    run = resolved(tmp_path, machine=replace(CPU, host_memory=0))
    check_memory(prepare_run(run), Console(stderr=True))


def test_a_container_has_no_more_memory_than_its_limit(tmp_path):
    assert host_memory(tmp_path) > 2**30
    (tmp_path / "memory.max").write_text("123456789\n")
    assert host_memory(tmp_path) == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path) > 2**30


@pytest.mark.parametrize(("free", "found"), [(7, 7), (0, 1)])
def test_free_disk_is_that_of_the_folder_to_be_made(free, found, tmp_path, monkeypatch):
    asked = []

    def disk_usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    assert free_disk(tmp_path / "not" / "yet" / "there") == found
    assert asked == [tmp_path]


def test_a_resumed_run_counts_the_room_of_checkpoints_that_newer_ones_replace(tmp_path):
    for step in (1, 2, 3):
        folder = checkpoint_folder(tmp_path / "run", step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(bytes(10 * step))

    def replaced(*flags):
        return replaced_bytes(tmp_path / "run", load_config([*flags]).checkpoints)

    resume = ("--resume_from_checkpoint", "auto")
    assert replaced(*resume, "--save_total_limit", "2") == 20 + 30
    assert replaced(*resume) == 0, "all are kept"
    assert replaced("--save_total_limit", "2") == 0, "nothing of an earlier run is deleted"
