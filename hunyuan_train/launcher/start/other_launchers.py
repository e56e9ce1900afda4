"""The same run in the words of other launchers: plain torchrun commands, or a script for sbatch."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.settings import COMMAND_SWITCHES
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.exit_codes import RESUME, SUCCESS
from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.launcher.job.jobs import RANKS
from hunyuan_train.shipped import IS_INSTALLED, TRAIN_SCRIPT, python_path
from hunyuan_train.terminal import complain

DEFAULT_PORT = 29500
STOP_SECONDS = 300  # before the end of a job's time, for the ranks to save
SLURM = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={num_hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}
#SBATCH --signal=B:USR1@{stop_seconds}
{gpus}# Add --time, --partition, --account and --cpus-per-task as your cluster wants them.
# {stop_seconds} s before its time is over the ranks finish their step and save; then the job goes
# back into the queue, and on from there; so it does when the run ends by --max_hours.
set -euo pipefail
cd {folder}
export PATH={bin_folder}:"$PATH"
{python_path}export TORCH_EXTENSIONS_DIR={extensions}
{device}MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

is_stopping=0
# shellcheck disable=SC2016 # each node puts its own number in
srun --kill-on-bad-exit=1 bash -c \\
  'exec "$0" {module} --first_rank="$((SLURM_NODEID * {slots}))" "$@"' \\
  {python} --ranks_here={slots} --num_ranks={num_ranks} --stop_seconds={stop_seconds} \\
  --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \\
  -- {script} &
step=$!
# To the ranks on every node and to what starts them; srun itself would end them at once.
trap 'is_stopping=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
status=0
wait "$step" || status=$?
if ((is_stopping)); then # the signal has ended the first wait
  wait "$step" || status=$?
fi
if ((is_stopping || status == {resume})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


class Resolves(Protocol):
    """Checks the run, on hosts that each offer what a machine does."""

    def __call__(self, *, machine: Machine) -> ResolvedRun:
        """Check it."""


def print_for_launcher(
    resolve: Resolves,
    cluster: Cluster,
    machine: Machine,
    arguments: Sequence[str],
    *,
    is_slurm: bool,
) -> int:
    """Print a job script for Slurm, or the commands of each host, after every check.

    Args:
        resolve: with all else that it needs.
        cluster: hosts of the job.
        machine: this one.
        arguments: those of `hunyuan-train train`.
        is_slurm: which of the two.
    """
    if is_slurm or cluster.local is None:
        machine = machine_of_job(machine, max(cluster.slots), os.environ)
    run = resolve(machine=machine)
    text = write_slurm(run, arguments) if is_slurm else write_torchrun(run, cluster, arguments)
    sys.stdout.write(text)
    return SUCCESS


def machine_of_job(here: Machine, slots: int, environment: Mapping[str, str]) -> Machine:
    """What each host of a job elsewhere has to offer, which is printed on a login machine perhaps.

    Args:
        here: this machine.
        slots: processes on the host that has most.
        environment: in which DS_ACCELERATOR asks for the CPU.
    """
    cores = max(here.num_cores, slots)
    if environment.get("DS_ACCELERATOR", "cuda") != "cuda":
        return replace(here, num_cores=cores)
    if not here.num_gpus:
        complain(
            f"this machine offers no GPUs: the job is written for hosts with {slots} each "
            "(for hosts without: DS_ACCELERATOR=cpu)"
        )
    return replace(here, num_gpus=max(here.num_gpus, slots), num_cores=cores)


def write_torchrun(run: ResolvedRun, cluster: Cluster, arguments: Sequence[str]) -> str:
    """The command of each host, to be started by hand or by another scheduler.

    Args:
        run: resolved.
        cluster: its hosts.
        arguments: those of `hunyuan-train train`.
    """
    port = run.config.launch.master_port or DEFAULT_PORT
    script = shlex.join([str(TRAIN_SCRIPT), *run_flags(run, arguments)])
    lines = []
    for rank, host in enumerate(cluster.hosts):
        words = [
            *(f"--nnodes={len(cluster.hosts)}", f"--node_rank={rank}"),
            *(f"--nproc_per_node={host.slots}", f"--master_addr={cluster.hosts[0].address}"),
            f"--master_port={port}",
        ]
        lines += [
            f"# on {host.address}",
            f"cd {shlex.quote(str(Path.cwd()))} && {python_path_of_ranks()}{device(run)}"
            f"{shlex.join([sys.executable, '-m', 'torch.distributed.run', *words])} {script}",
        ]
    return "\n".join([*lines, ""])


def write_slurm(run: ResolvedRun, arguments: Sequence[str]) -> str:
    """A script for sbatch; Slurm says which hosts.

    Args:
        run: resolved, with as many hosts and processes on each as the job is to have.
        arguments: those of `hunyuan-train train`.

    Raises:
        ConfigError: hosts with unequal slots, which one `srun` cannot start.
    """
    slots = run.slots[0]
    if len(set(run.slots)) > 1:
        raise ConfigError(
            f"NODE_IP_LIST gives its hosts {', '.join(map(str, run.slots))} slots, and a job of "
            "Slurm's has as many processes on each node; give all hosts the same number"
        )
    flags = run_flags(run, arguments)
    if not any(word.startswith("--resume_from_checkpoint") for word in flags):
        flags += ["--resume_from_checkpoint", "auto"]
    script = shlex.join([str(TRAIN_SCRIPT), *flags])
    output_dir = Path(run.config.train.output_dir).absolute()
    ours = python_path(None)
    return SLURM.format(
        name=shlex.quote(run.config.logs.run_name or output_dir.name),
        num_hosts=len(run.slots),
        # A percent sign of the user's own is doubled, or Slurm would put something in its place.
        output=shlex.quote(str(output_dir).replace("%", "%%") + "-%j.txt"),
        stop_seconds=STOP_SECONDS,
        gpus=f"#SBATCH --gpus-per-node={slots}\n" if run.machine.num_gpus else "",
        folder=shlex.quote(str(Path.cwd())),
        bin_folder=shlex.quote(str(Path(sys.executable).parent)),
        python_path=f'export PYTHONPATH={shlex.quote(ours)}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
        if ours
        else "",
        extensions=shlex.quote(str(extensions_folder(os.environ))),
        device="" if run.machine.num_gpus else "export DS_ACCELERATOR=cpu\n",
        python=shlex.quote(RANKS[0]),
        module=shlex.join(RANKS[1:]),
        num_ranks=slots * len(run.slots),
        script=script,
        slots=slots,
        resume=RESUME,
    )


def python_path_of_ranks() -> str:
    """What lets the training script find a package that pip has put elsewhere than Python looks."""
    path = python_path(None) if IS_INSTALLED else ""  # in a checkout the script lies beside it
    return f"PYTHONPATH={shlex.quote(path)} " if path else ""


def device(run: ResolvedRun) -> str:
    """What tells DeepSpeed to stay on the CPU, where there are no GPUs."""
    return "" if run.machine.num_gpus else "DS_ACCELERATOR=cpu "


def run_flags(run: ResolvedRun, arguments: Sequence[str]) -> list[str]:
    """The user's own flags, and what every host must decide alike."""
    switches = {f"__{name}" for name in COMMAND_SWITCHES}
    flags = [word for word in arguments if word.replace("-", "_") not in switches]
    if not any(word.startswith("--expert_parallel_size") for word in flags):
        flags += ["--expert_parallel_size", str(run.config.parallel.expert_parallel_size)]
    return flags
