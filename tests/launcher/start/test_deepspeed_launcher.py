"""LAUNCHER=deepspeed: it trains the same, asks nothing, and its success is not believed."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.job.jobs import Rendezvous
from hunyuan_train.launcher.rank.worker import environment_file, take_environment
from hunyuan_train.launcher.start.deepspeed_launcher import (
    check_settings,
    deepspeed_command,
    judge,
    launcher_environment,
    write_privately,
)
from tests.launcher.training import RUN, losses

CLUSTER = Cluster(hosts=(Host("a", 2), Host("b", 2)), local=None)


def test_an_exit_code_of_0_is_believed_only_with_the_marks_of_all_ranks():
    assert judge(0, 4, CLUSTER).reason == "done"
    outcome = judge(0, 3, CLUSTER)
    assert outcome.exit_code == 1
    assert "only 3 of 4 ranks came to the end" in outcome.words
    assert judge(247, 0, CLUSTER).exit_code == 247


def test_what_its_shell_sees_is_little_and_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    launch = LaunchConfig(ssh_port=36005, ssh_config="/my config", ssh_user="me")
    ranks = {"WANDB_API_KEY": "s3cret", "PATH": "/bin:/a b:$(id)", "NCCL_X": "two\nlines"}
    made = launcher_environment(launch, ranks, tmp_path)
    assert made["PDSH_SSH_ARGS_APPEND"].startswith("-l me -F '/my config' -o BatchMode=yes")
    assert "s3cret" not in made.values()
    file = Path(made["DS_ENV_FILE"])
    assert file.stat().st_mode & 0o077 == 0
    assert file.read_text() == f"PATH=/bin:/a b:\\$(id)\nHUNYUAN_TRAIN_SHARED={tmp_path}\n"
    rendezvous = Rendezvous(address="a", port=29501, interfaces={})
    command = deepspeed_command(launch, tmp_path / "hostfile", rendezvous, tmp_path / "run.yaml")
    assert command[-2:] == ["--config", str(tmp_path / "run.yaml")]
    assert {"--no_ssh_check", "36005", "29501"} <= set(command)


def test_a_rank_finds_the_rest_in_the_file_of_its_host(tmp_path, monkeypatch):
    write_privately(environment_file(tmp_path, 1), '{"WANDB_API_KEY": "s3cret"}')
    monkeypatch.setenv("HUNYUAN_TRAIN_SHARED", str(tmp_path))
    monkeypatch.setenv("CROSS_RANK", "1")
    monkeypatch.setenv("WANDB_API_KEY", "")
    take_environment()
    assert os.environ["WANDB_API_KEY"] == "s3cret"
    assert environment_file(tmp_path, 1).stat().st_mode & 0o077 == 0


def test_what_it_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="apt-get install pdsh"):
        check_settings(LaunchConfig(), CLUSTER)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/pdsh")
    with pytest.raises(ConfigError, match="no IPv6 address such as fd00::1"):
        check_settings(LaunchConfig(), Cluster(hosts=(Host("fd00::1", 1),), local=None))
    with pytest.raises(ConfigError, match="LAUNCHER=deepspeed cannot restart"):
        check_settings(LaunchConfig(max_restarts=1), CLUSTER)


@pytest.mark.slow
def test_it_trains_the_same_and_a_killed_rank_is_no_success(
    network,
    training,
    undisturbed,
):
    if shutil.which("pdsh") is None:
        pytest.skip("pdsh is missing: apt-get install pdsh")
    run = training(*RUN, LAUNCHER="deepspeed", WANDB_API_KEY="s3cret")
    run.wait_for("step 1/")
    seen = [line for host in (0, 1) for line in network.processes(host).values()]
    assert run.end() == 0, run.text()
    assert losses(run.folder) == losses(undisturbed)
    assert any("pdsh" in line for line in seen)
    assert not any("s3cret" in line for line in [*seen, *run.lines])
    killed = training(*RUN, folder="killed", LAUNCHER="deepspeed")
    killed.wait_for("step 5/")
    os.kill(killed.find(1, "train.py"), signal.SIGKILL)
    assert killed.end() != 0
    assert "ranks came to the end" in killed.text()
