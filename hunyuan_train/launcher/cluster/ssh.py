"""How hosts are reached: by the OpenSSH binary, with the user's own configuration, never asking.

A host's command line goes through the login shell there, so it holds quoted words of our own and
no setting of the user's; those travel on stdin.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.shipped import render_command

CONNECT_SECONDS = 4
EXIT_UNREACHABLE = 255  # ssh's own failures; those of the remote command are lower


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a host could not be reached, and what fixes it."""

    check: str
    found: str
    remedy: str


def ssh_options(launch: LaunchConfig) -> list[str]:
    """What ssh, and what rsync's ssh, is started with."""
    options = {
        "BatchMode": "yes",  # a question would wait for ever on 16 hosts
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",  # a shared connection would outlive the run, or end with another
        "ControlPath": "none",
        "RemoteCommand": "none",
        "LogLevel": "ERROR",
    }
    words = [
        "-T",
        "-a",
        "-x",
        *(word for key in options for word in ("-o", f"{key}={options[key]}")),
    ]
    if launch.ssh_config:
        words += ["-F", launch.ssh_config]
    if launch.ssh_port:
        words += ["-p", str(launch.ssh_port)]
    if launch.ssh_user:
        words += ["-l", launch.ssh_user]
    return words


def ssh_command(host: Host, launch: LaunchConfig, command: Sequence[str]) -> list[str]:
    """The words that run a command on a host."""
    return ["ssh", *ssh_options(launch), "--", host.address, shlex.join(command)]


def explain(stderr: str, host: Host, launch: LaunchConfig) -> Trouble:
    """Turn ssh's failure report into what was found and what to do."""
    words = " ".join(stderr.split()) or "ssh ended without a word"
    login = f"{launch.ssh_user}@{host.address}" if launch.ssh_user else host.address
    port = f"-p {launch.ssh_port} " if launch.ssh_port else ""
    known = f"'[{host.address}]:{launch.ssh_port}'" if launch.ssh_port else host.address
    reasons = {
        "IDENTIFICATION HAS CHANGED": (
            "host key",
            f"ssh-keygen -R {known}, if the host was installed anew; then "
            f"{render_command('doctor', '--trust')}",
        ),
        "Host key verification failed": ("host key", render_command("doctor", "--trust")),
        "Permission denied": ("ssh key", f"ssh-copy-id {port}{login}"),
        "Connection refused": (
            "ssh port",
            "nothing listens there: give sshd's port with --ssh_port, or start sshd on it",
        ),
        "Could not resolve": ("ssh", "give the address, or add the name to DNS or /etc/hosts"),
        "timed out": (
            "ssh",
            f"switch {host.address} on, or fix the network or firewall before it",
        ),
        "No route to host": ("ssh", f"switch {host.address} on, or fix the network to it"),
        "unreachable": ("ssh", f"fix the network to {host.address}"),
        "Too many authentication": ("ssh key", "name one key for the host in ~/.ssh/config"),
        "Bad owner or permissions": ("ssh", "chmod 600 the file that ssh names"),
        "No such file or directory": ("ssh", "give an existing file with --ssh_config"),
    }
    for mark, (check, remedy) in reasons.items():
        if mark in words:
            return Trouble(check, words, remedy)
    return Trouble("ssh", words, f"fix what `ssh {port}{login} true` says")
