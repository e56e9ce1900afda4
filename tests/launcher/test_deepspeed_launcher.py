"""LAUNCHER=deepspeed: it trains the same, asks nothing, and its success is not believed."""

import os
import shutil
import signal

import pytest

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import LaunchConfig
from hunyuan_train.launcher.cluster import Cluster
from hunyuan_train.launcher.deepspeed_launcher import (
    check_settings,
    deepspeed_command,
    judge,
    launcher_environment,
)
from hunyuan_train.launcher.hosts import Host
from hunyuan_train.launcher.jobs import Meeting
from tests.launcher.training import RUN, losses

CLUSTER = Cluster(hosts=(Host("a", 2), Host("b", 2)), local=None)


def test_an_exit_code_of_0_is_believed_only_with_the_marks_of_all_ranks():
    assert judge(0, 4, CLUSTER).reason == "done"
    outcome = judge(0, 3, CLUSTER)
    assert outcome.exit_code == 1
    assert "only 3 of 4 ranks came to the end" in outcome.words
    assert judge(247, 0, CLUSTER).exit_code == 247


def test_secrets_are_in_a_file_of_the_users_and_not_on_the_command_line(tmp_path):
    launch = LaunchConfig(ssh_port=36005, ssh_config="/my config", ssh_user="me")
    environment = {"WANDB_API_KEY": "s3cret", "PS1": "$", "NCCL_X": "two\nlines"}
    made = launcher_environment(launch, environment, tmp_path)
    assert made["PDSH_SSH_ARGS_APPEND"].startswith("-l me -F '/my config' -o BatchMode=yes")
    file = tmp_path / "environment"
    assert file.stat().st_mode & 0o077 == 0
    assert "WANDB_API_KEY=s3cret\n" in file.read_text()
    assert "PS1" not in file.read_text()
    assert all("=" in line for line in file.read_text().splitlines())
    meeting = Meeting(address="a", port=29501, interfaces={})
    command = deepspeed_command(launch, tmp_path / "hostfile", meeting, tmp_path / "run.yaml")
    assert command[-2:] == ["--config", str(tmp_path / "run.yaml")]
    assert {"--no_ssh_check", "36005", "29501"} <= set(command)


def test_what_it_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="apt-get install pdsh"):
        check_settings(LaunchConfig())
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/pdsh")
    with pytest.raises(ConfigError, match="LAUNCHER=deepspeed cannot restart"):
        check_settings(LaunchConfig(max_restarts=1))


@pytest.mark.slow
def test_it_trains_the_same_and_a_killed_rank_is_no_success(
    network,
    training,
    undisturbed,
):
    if shutil.which("pdsh") is None:
        pytest.skip("pdsh is missing: apt-get install pdsh")
    run = training(*RUN, LAUNCHER="deepspeed")
    assert run.end() == 0, run.text()
    assert losses(run.folder) == losses(undisturbed)
    killed = training(*RUN, folder="killed", LAUNCHER="deepspeed")
    killed.wait_for("step 9/")
    os.kill(killed.find(1, "train.py"), signal.SIGKILL)
    assert killed.end() != 0
    assert "ranks came to the end" in killed.text()
