import json
import shlex
import sys
from itertools import pairwise

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import ssh_command
from hunyuan_train.launcher.job.jobs import CONFIG_FILE, Rendezvous, make_jobs

MACHINE = Machine(num_gpus=0, num_cores=8)
A, B = Host("10.0.0.1", 2), Host("10.0.0.2", 4)


def jobs(cluster, **interfaces):
    config = load_config(["--num_processes", "2", "--ssh_port", "36005", "--seed", "7"])
    rendezvous = Rendezvous(address="10.0.0.1", port=29501, interfaces=interfaces)
    return make_jobs(config, cluster, rendezvous, MACHINE)


def test_each_host_starts_its_own_ranks_which_meet_at_the_first(repository):
    here, there = jobs(Cluster(hosts=(A, B), local=A))
    command = there.spec.commands[-1]
    assert {"--num_ranks=6", "--first_rank=2", "--ranks_here=4"} <= set(command)
    assert {"--master_addr=10.0.0.1", "--master_port=29501", "--is_marked"} <= set(command)
    assert command[-3:] == [str(repository / "train.py"), "--config", f"{{folder}}/{CONFIG_FILE}"]
    assert {"--first_rank=0", "--ranks_here=2"} <= set(here.spec.commands[-1])
    assert here.command[0] == sys.executable
    assert there.command[0] == "ssh"


def test_each_host_gets_the_config_with_its_own_number_of_processes(tmp_path):
    for job, num_processes in zip(jobs(Cluster(hosts=(A, B), local=A)), (2, 4), strict=True):
        path = tmp_path / "run.yaml"
        path.write_text(job.spec.files[CONFIG_FILE])
        config = load_config(["--config", str(path)])
        assert config.parallel.num_processes == num_processes
        assert config.train.seed == 7


def test_nothing_secret_and_no_setting_stands_on_a_command_line(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setenv("NCCL_DEBUG", "$(touch x)")
    _, there = jobs(Cluster(hosts=(A, B), local=A))
    assert "s3cret" not in shlex.join([*there.command, *there.spec.commands[-1]])
    assert "touch" not in shlex.join(there.command)
    assert there.spec.environment["WANDB_API_KEY"] == "s3cret"
    assert json.dumps(there.spec.environment)


def test_port_user_and_configuration_reach_ssh_as_words_of_their_own():
    flags = ("--ssh_port", "36005", "--ssh_user", "me", "--ssh_config", "/my files/config")
    command = ssh_command(B, load_config(list(flags)).launch, ["true"])
    pairs = list(pairwise(command))
    assert {("-p", "36005"), ("-l", "me"), ("-F", "/my files/config"), ("--", B.address)} <= set(
        pairs
    )


def test_a_run_here_uses_no_ssh_and_keeps_the_terminal(monkeypatch):
    alone = Host("127.0.0.1", 2)
    (job,) = jobs(Cluster(hosts=(alone,), local=alone))
    assert job.command[0] == sys.executable
    assert "--is_marked" not in job.spec.commands[-1]


def test_a_host_talks_through_its_own_interface_unless_the_user_says_another(monkeypatch):
    cluster = Cluster(hosts=(A, B), local=A)
    config = load_config(["--num_processes", "2"])
    rendezvous = Rendezvous(address="10.0.0.1", port=1, interfaces={A: "eth0", B: "bond1"})
    first, second = make_jobs(config, cluster, rendezvous, MACHINE)
    assert first.spec.environment["GLOO_SOCKET_IFNAME"] == "eth0"
    assert second.spec.environment["NCCL_SOCKET_IFNAME"] == "bond1"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    _, second = make_jobs(config, cluster, rendezvous, MACHINE)
    assert second.spec.environment["NCCL_SOCKET_IFNAME"] == "ib0"
