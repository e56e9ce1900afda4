"""Builds what each host is told to do: to start its ranks, under the node's agent."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.checkpoint.user_commands import words_of
from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.load import dump_text
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import ssh_command
from hunyuan_train.launcher.host.extension import needed_extensions
from hunyuan_train.launcher.host.node_agent import FOLDER, Spec
from hunyuan_train.launcher.job.node import Job
from hunyuan_train.launcher.rank.environment import (
    forwarded_environment,
    own_environment,
    rank_environment,
)
from hunyuan_train.shipped import CODE_FOLDER, TRAIN_SCRIPT

CONFIG_FILE = "run.yaml"
NODE_AGENT = ("-m", "hunyuan_train.launcher.host.node_agent")
RANKS = (sys.executable, "-u", "-m", "hunyuan_train.launcher.host.ranks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where the ranks of a run meet, and by which network interface each host comes."""

    address: str  # of rank 0's host, as the others know it
    port: int  # 0 on one machine: what starts the ranks chooses it
    interfaces: Mapping[Host, str]  # hosts that are not in it leave the choice to the backend


def make_jobs(
    config: RunConfig, cluster: Cluster, rendezvous: Rendezvous, machine: Machine
) -> list[Job]:
    """One job per host, rank 0's first.

    Args:
        config: resolved; the ranks read it from a file that travels with the job.
        machine: what every host offers.
    """
    scripts = [str(TRAIN_SCRIPT), "--config", f"{FOLDER}/{CONFIG_FILE}"]
    commands = {
        host: [
            *prepare_commands(config, machine),
            *fetch_commands(config, is_local=host == cluster.local),
            ranks_command(cluster, host, rendezvous, scripts),
        ]
        for host in cluster.hosts
    }
    return [
        make_job(
            host,
            cluster,
            config.launch,
            commands=commands[host],
            files={CONFIG_FILE: dump_text(with_settings(config, num_processes=host.slots or 1))},
            environment=host_environment(host, cluster, rendezvous, machine),
        )
        for host in cluster.hosts
    ]


def make_job(
    host: Host,
    cluster: Cluster,
    launch: LaunchConfig,
    *,
    commands: list[list[str]],
    files: dict[str, str],
    environment: dict[str, str],
) -> Job:
    """A host's part of a run, to be started here or over ssh."""
    spec = Spec(
        commands=commands,
        environment=environment,
        files=files,
        working_folder=str(Path.cwd()),
        lease_seconds=launch.host_timeout_seconds,
        stop_seconds=launch.stop_timeout_seconds,
    )
    if host == cluster.local:
        command = [sys.executable, *NODE_AGENT]
        return Job(host=host, command=command, spec=spec, environment=own_environment())
    command = ssh_command(host, launch, ["sh", "-c", START_NODE_AGENT])
    return Job(host=host, command=command, spec=spec)


# Fails with the folder's or the interpreter's name where a host lacks them.
START_NODE_AGENT = (
    f"cd {shlex.quote(str(CODE_FOLDER))} && exec {shlex.join([sys.executable, *NODE_AGENT])}"
)


def prepare_commands(config: RunConfig, machine: Machine) -> list[list[str]]:
    """What each host does before its ranks start."""
    extensions = needed_extensions(config, num_gpus=machine.num_gpus)
    if not extensions:
        return []
    names = [extension.name for extension in extensions]
    return [[sys.executable, "-m", "hunyuan_train.launcher.host.extension", *names]]


def fetch_commands(config: RunConfig, *, is_local: bool) -> list[list[str]]:
    """What brings a host its own part of copies back; the launcher has done it where it runs."""
    checkpoints = config.checkpoints
    command, is_each = checkpoints.before_resume, checkpoints.commands_on == "each_host"
    if is_local or not (command and checkpoints.resume_from_checkpoint and is_each):
        return []
    return [words_of(command, Path(config.train.output_dir))]


def ranks_command(
    cluster: Cluster, host: Host, rendezvous: Rendezvous, words: list[str]
) -> list[str]:
    """What starts the ranks of one host.

    Args:
        cluster: all hosts; ranks are counted in their order.
        host: the one.
        rendezvous: where all ranks meet.
        words: what each rank runs, for Python.
    """
    index = cluster.hosts.index(host)
    return [
        *RANKS,
        f"--ranks_here={cluster.slots[index]}",
        f"--first_rank={sum(cluster.slots[:index])}",
        f"--num_ranks={sum(cluster.slots)}",
        *(f"--master_addr={rendezvous.address}", f"--master_port={rendezvous.port}"),
        *([] if cluster.is_alone else ["--is_marked"]),
        *("--", *words),
    ]


def host_environment(
    host: Host, cluster: Cluster, rendezvous: Rendezvous, machine: Machine
) -> dict[str, str]:
    """What the ranks of one host find in their environment."""
    environment = rank_environment(
        forwarded_environment(os.environ),
        num_processes=host.slots or 1,
        num_gpus=machine.num_gpus,
        num_cores=machine.num_cores,
    )
    if interface := rendezvous.interfaces.get(host):
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(variable, interface)
    return environment
