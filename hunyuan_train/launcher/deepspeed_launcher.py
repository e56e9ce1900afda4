"""LAUNCHER=deepspeed: DeepSpeed's own launcher through pdsh, for those who are used to it.

Its exit code cannot be trusted (it is 0 after a killed job), it does not notice a lost host, and
Ctrl-C ends every DeepSpeed run of the same Python on the hosts. So a run counts as done only when
every rank has left its mark, and nothing is restarted.
"""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.load import REPOSITORY, dump_config
from hunyuan_train.config.schema import LaunchConfig, RunConfig
from hunyuan_train.launcher.cluster import Cluster
from hunyuan_train.launcher.environment import forwarded_environment, rank_environment
from hunyuan_train.launcher.exit_codes import FAILURE, SUCCESS
from hunyuan_train.launcher.jobs import Meeting
from hunyuan_train.launcher.many import ManyHosts
from hunyuan_train.launcher.outcome import Outcome
from hunyuan_train.launcher.supervise import run_supervised
from hunyuan_train.launcher.worker import MARKS_VARIABLE, count_marks

SSH_ARGUMENTS = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"


def try_deepspeed(many: ManyHosts, config: RunConfig) -> Outcome:
    """Run once under DeepSpeed's launcher.

    Raises:
        ConfigError: pdsh is missing, or a setting that it cannot do.
    """
    check_settings(config.launch)
    examination, cluster = many.examination, many.cluster
    assert examination  # there is one try, right after the hosts were looked at
    folder = Path(config.train.output_dir).absolute()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".deepspeed-") as shared:
        hostfile, config_file = Path(shared, "hostfile"), Path(shared, "run.yaml")
        hostfile.write_text("".join(f"{one.address} slots={one.slots}\n" for one in cluster.hosts))
        dump_config(config, config_file)
        environment = rank_environment(
            os.environ,
            num_processes=max(cluster.slots),
            num_gpus=examination.machine.num_gpus,
            num_cores=examination.machine.num_cores,
        )
        environment |= launcher_environment(config.launch, environment, Path(shared))
        meeting = examination.meeting(config.launch.master_port)
        command = deepspeed_command(config.launch, hostfile, meeting, config_file)
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
        f"said {exit_code}); LAUNCHER=torchrun says which failed, and restarts",
    )


def check_settings(launch: LaunchConfig) -> None:
    """Refuse what DeepSpeed's launcher cannot do."""
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
    launch: LaunchConfig, environment: dict[str, str], folder: Path
) -> dict[str, str]:
    """What makes pdsh ask nothing, notice a dead connection, and pass the environment on."""
    marked = {**forwarded_environment(environment), MARKS_VARIABLE: str(folder)}
    names = folder / "environment"
    names.touch(mode=0o600)
    # One line each and no quotes: the file's reader knows neither.
    lines = [f"{name}={value}\n" for name, value in marked.items() if "\n" not in value]
    names.write_text("".join(lines), encoding="utf-8")
    arguments = SSH_ARGUMENTS
    if launch.ssh_config:
        arguments = f"-F {shlex.quote(launch.ssh_config)} {arguments}"
    if launch.ssh_user:
        arguments = f"-l {launch.ssh_user} {arguments}"
    return {
        "DS_ENV_FILE": str(names),
        "PDSH_SSH_ARGS_APPEND": arguments,
        MARKS_VARIABLE: str(folder),
    }


def deepspeed_command(
    launch: LaunchConfig, hostfile: Path, meeting: Meeting, config_file: Path
) -> list[str]:
    """DeepSpeed's launcher with one argument for the script: it expands others in a shell there."""
    port = ["--ssh_port", str(launch.ssh_port)] if launch.ssh_port else []
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--launcher", "pdsh"),
        *("--no_ssh_check", "--hostfile", str(hostfile), *port),
        *("--master_addr", meeting.address, "--master_port", str(meeting.port)),
        *(str(REPOSITORY / "train.py"), "--config", str(config_file)),
    ]
