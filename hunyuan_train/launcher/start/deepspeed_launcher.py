"""LAUNCHER=deepspeed: DeepSpeed's own launcher through pdsh, for those who are used to it.

Its exit code cannot be trusted (it is 0 after a killed job), it does not notice a lost host, and
Ctrl-C ends every DeepSpeed run of the same Python on the hosts. So a run counts as done only when
every rank has left its mark, and nothing is restarted. Variables that it passes on stand on command
lines, on the screen, and in double quotes before a shell: so all but a few go by a file of ours.
"""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.load import dump_config
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.exit_codes import FAILURE, SUCCESS
from hunyuan_train.launcher.host.supervise import run_supervised
from hunyuan_train.launcher.job.jobs import Rendezvous, host_environment
from hunyuan_train.launcher.job.outcome import Outcome
from hunyuan_train.launcher.rank.worker import SHARED_VARIABLE, count_marks, environment_file
from hunyuan_train.launcher.start.many import ManyHosts
from hunyuan_train.shipped import TRAIN_SCRIPT

SHARED_PREFIX = ".deepspeed-"
# What its own process on each host needs before ours begins.
EXPORTED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "DS_ACCELERATOR")
# It also exports these by itself, whatever their values are; ours go by the file.
EXPORTED_BY_ITSELF = ("MLFLOW", "MV2", "UCX", "NCCL")
IN_QUOTES = re.compile(r'([$`"\\])')  # what a shell heeds between double quotes
SSH_ARGUMENTS = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"


def try_deepspeed(many: ManyHosts, config: RunConfig) -> Outcome:
    """Run once under DeepSpeed's launcher.

    Raises:
        ConfigError: pdsh is missing, or a setting that it cannot do.
    """
    check_settings(config.launch, many.cluster)
    preflight, cluster = many.preflight, many.cluster
    assert preflight  # there is one try, right after the hosts were looked at
    folder = Path(config.train.output_dir).absolute()
    for left in folder.glob(f"{SHARED_PREFIX}*"):  # by a start that was killed; none other is here
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SHARED_PREFIX) as shared:
        hostfile, config_file = Path(shared, "hostfile"), Path(shared, "run.yaml")
        hostfile.write_text("".join(f"{one.address} slots={one.slots}\n" for one in cluster.hosts))
        # One file for all hosts, whose numbers of processes may differ: each takes what is started.
        parallel = replace(config.parallel, num_processes="auto")
        dump_config(replace(config, parallel=parallel), config_file)
        rendezvous = preflight.rendezvous(config.launch.master_port)
        ranks = [
            {
                **host_environment(host, cluster, rendezvous, preflight.machine),
                "LOCAL_WORLD_SIZE": str(host.slots),  # which DeepSpeed does not tell
            }
            for host in cluster.hosts
        ]
        for number, environment in enumerate(ranks):
            write_privately(environment_file(Path(shared), number), json.dumps(environment))
        environment = launcher_environment(config.launch, ranks[0], Path(shared))
        command = deepspeed_command(config.launch, hostfile, rendezvous, config_file)
        exit_code = run_supervised(command, environment)
        num_marks = count_marks(Path(shared))
    return judge(exit_code, num_marks, cluster)


def judge(exit_code: int, num_marks: int, cluster: Cluster) -> Outcome:
    """A run is done when all ranks say so, whatever the launcher says."""
    wanted = sum(cluster.slots)
    if num_marks == wanted:
        return Outcome(reason="done", exit_code=SUCCESS)
    return Outcome(
        reason="stopped",
        exit_code=exit_code or FAILURE,
        words=f"error: only {num_marks} of {wanted} ranks came to the end (DeepSpeed's launcher "
        f"said {exit_code}); LAUNCHER=ssh says which failed, and restarts",
    )


def check_settings(launch: LaunchConfig, cluster: Cluster) -> None:
    """Refuse what DeepSpeed's launcher cannot do."""
    for host in cluster.hosts:
        if ":" in host.address:
            raise ConfigError(
                f"LAUNCHER is deepspeed, but pdsh takes no IPv6 address such as {host.address}: "
                "give a name or an IPv4 address, or leave LAUNCHER out"
            )
    if shutil.which("pdsh") is None:
        raise ConfigError(
            "LAUNCHER is deepspeed, which needs pdsh: apt-get install pdsh, or leave LAUNCHER out"
        )
    if launch.max_restarts:
        raise ConfigError(
            f"max_restarts is {launch.max_restarts}, but LAUNCHER=deepspeed cannot restart; leave "
            "one of them out"
        )


def launcher_environment(
    launch: LaunchConfig, rank_environment: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """The launcher's own: it asks nothing, notices a dead connection, and passes little on."""
    exported = {name: rank_environment[name] for name in EXPORTED if name in rank_environment}
    exported[SHARED_VARIABLE] = str(folder)
    names = folder / "exported"
    quoted = {name: IN_QUOTES.sub(r"\\\1", value) for name, value in exported.items()}
    write_privately(names, "".join(f"{name}={value}\n" for name, value in quoted.items()))
    arguments = SSH_ARGUMENTS
    if launch.ssh_config:
        arguments = f"-F {shlex.quote(launch.ssh_config)} {arguments}"
    if launch.ssh_user:
        arguments = f"-l {launch.ssh_user} {arguments}"
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*EXPORTED_BY_ITSELF, "PYTHON"))
    }
    return {**own, **exported, "DS_ENV_FILE": str(names), "PDSH_SSH_ARGS_APPEND": arguments}


def write_privately(path: Path, text: str) -> None:
    """Write a file that nobody else may read."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def deepspeed_command(
    launch: LaunchConfig, hostfile: Path, rendezvous: Rendezvous, config_file: Path
) -> list[str]:
    """DeepSpeed's launcher with one argument for the script: it expands others in a shell there."""
    port = ["--ssh_port", str(launch.ssh_port)] if launch.ssh_port else []
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--launcher", "pdsh"),
        *("--no_ssh_check", "--hostfile", str(hostfile), *port),
        *("--master_addr", rendezvous.address, "--master_port", str(rendezvous.port)),
        *(str(TRAIN_SCRIPT), "--config", str(config_file)),
    ]
