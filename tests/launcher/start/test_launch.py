import io
import os

import pytest
from rich.console import Console

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import checkpoint_folder
from hunyuan_train.config.load import load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.machine import count_gpus, detect_machine
from hunyuan_train.launcher.rank.worker import check_place, started_slots
from hunyuan_train.launcher.start.prepare import (
    check_newest,
    check_whose_checkpoints,
    lock_output_folder,
    prepare_output_folder,
)

QUIET = Console(quiet=True)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi that lists two GPUs in front of PATH."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\necho 'GPU 1: NVIDIA H100'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("hunyuan_train.launcher.machine.is_cpu_build", lambda: False)


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"DS_ACCELERATOR": "cpu"}, 0),
    ],
)
def test_gpus_are_those_that_torch_will_see(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert count_gpus() == expected


@pytest.mark.usefixtures("nvidia_smi")
def test_a_torch_without_cuda_sees_no_gpu(monkeypatch):
    monkeypatch.setattr("hunyuan_train.launcher.machine.is_cpu_build", lambda: True)
    assert detect_machine().num_gpus == 0


def test_the_output_folder_holds_the_config_that_reads_back(tmp_path):
    config = load_config(["--output_dir", str(tmp_path / "a b/run"), "--seed", "5"])
    assert load_config(["--config", str(prepare_output_folder(config, QUIET))]) == config


def test_an_earlier_run_moves_aside_and_only_the_last_one_is_kept(tmp_path):
    folder, previous = tmp_path / "run", tmp_path / "run.previous"
    flags = ["--output_dir", str(folder), "--overwrite_output_dir"]
    screen = io.StringIO()
    for number in range(3):
        prepare_output_folder(load_config(flags), Console(file=screen, width=1000))
        assert not (folder / "mark").exists()
        (folder / "mark").write_text(str(number))
        checkpoint = folder / "checkpoints" / "step-000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").touch()
    assert (previous / "mark").read_text() == "1"
    first, second = screen.getvalue().splitlines()
    assert first.endswith(f"moved to {previous}")
    assert second.endswith("in place of the one before it, which is deleted")


def test_a_run_is_not_started_afresh_where_another_was_meant(tmp_path):
    folder = tmp_path / "r c"
    file = prepare_output_folder(load_config(["--output_dir", str(folder)]), QUIET)
    words = ["--config", str(file), "--resume_from_checkpoint", "auto"]
    elsewhere = [*words, "--output_dir", str(tmp_path / "r c2")]
    check_whose_checkpoints(load_config(elsewhere), file)  # that run has saved nothing either
    checkpoint = checkpoint_folder(folder, 22)
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    with pytest.raises(CheckpointError, match=r"has step-000022.*--resume_from_checkpoint '.*22'"):
        check_whose_checkpoints(load_config(elsewhere), file)
    check_whose_checkpoints(load_config(words), file)
    check_whose_checkpoints(load_config([*words[:2], *elsewhere[4:]]), file)


def test_a_run_without_a_checkpoint_does_not_push_out_one_that_has_one(tmp_path):
    folder, previous = tmp_path / "run", tmp_path / "run.previous"
    flags = ["--output_dir", str(folder), "--overwrite_output_dir"]
    previous.mkdir()
    for _ in range(2):
        prepare_output_folder(load_config(flags), QUIET)
    assert previous.exists()


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    config = load_config(["--output_dir", str(tmp_path / "run")])
    (tmp_path / "link").symlink_to(tmp_path / "run")
    by_another_name = load_config(["--output_dir", str(tmp_path / "link")])
    for other in (config, by_another_name):
        with (
            lock_output_folder(config),
            pytest.raises(ConfigError, match="another run is going on"),
            lock_output_folder(other),
        ):
            pass
    with lock_output_folder(config):
        pass


def test_an_earlier_checkpoint_is_not_gone_on_from_beside_later_ones(tmp_path):
    for step in (3, 6):
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    check_newest(checkpoint_folder(tmp_path, 6), 6, tmp_path)
    check_newest(checkpoint_folder(tmp_path, 3), 3, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"of step 3, and .* goes on to step-000006"):
        check_newest(checkpoint_folder(tmp_path, 3), 3, tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    config = load_config(["--output_dir", str(tmp_path / "file" / "run")])
    with pytest.raises(ConfigError, match="nothing can be written"), lock_output_folder(config):
        pass


def test_a_resumed_run_stays_where_it_is(tmp_path):
    flags = ["--output_dir", str(tmp_path / "run"), "--overwrite_output_dir"]
    prepare_output_folder(load_config(flags), QUIET)
    (tmp_path / "run/mark").touch()
    prepare_output_folder(load_config([*flags, "--resume_from_checkpoint", "auto"]), QUIET)
    assert (tmp_path / "run/mark").exists()


def test_a_part_of_a_place_among_ranks_is_left_from_something_else(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    check_place()
    monkeypatch.setenv("MASTER_PORT", "")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match=r"without WORLD_SIZE, MASTER_PORT; .*unset RANK"):
        check_place()


def test_a_config_for_other_processes_than_torchrun_started_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    for flags in ([], ["--num_processes", "4"]):
        assert started_slots(load_config(flags)) == (4, 4)
    with pytest.raises(ConfigError, match="num_processes is 2, but torchrun started 4"):
        started_slots(load_config(["--num_processes", "2"]))
