"""From a command line to running ranks on this machine."""

import os
import shlex
import socket
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.config.load import REPOSITORY
from hunyuan_train.config.resolve import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.launcher.exit_codes import RESUME
from hunyuan_train.launcher.extension import (
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.memory import check_memory
from hunyuan_train.launcher.plan import show_plan
from hunyuan_train.launcher.preflight import Plan
from hunyuan_train.launcher.prepare import (
    check_resume,
    lock_output_folder,
    prepare_data,
    prepare_output_folder,
)
from hunyuan_train.launcher.supervise import INTERRUPTED, run_supervised
from hunyuan_train.launcher.worker import FAILURES_VARIABLE


def launch(plan: Plan, *, is_dry_run: bool) -> int:
    """Say what a checked run will do, start its ranks and wait for them.

    Returns:
        the exit code of the rank that failed first, or 0.
    """
    console = Console(stderr=True)
    machine = plan.machine
    data = prepare_data(plan)
    show_plan(plan, data, console)
    check_resume(plan.config, data)
    check_memory(plan, data, console)
    if is_dry_run:
        console.print("dry run: every check passed, nothing was started")
        return 0
    environment = worker_environment(plan.config, machine)
    for extension in needed_extensions(plan.config, num_gpus=machine.num_gpus):
        folder = extensions_folder(environment)
        prepare_extension(extension, folder=folder, environment=environment, console=console)
    with lock_output_folder(plan.config), tempfile.TemporaryDirectory() as failures:
        config_file = prepare_output_folder(plan.config, console)
        environment[FAILURES_VARIABLE] = failures
        exit_code = run_supervised(worker_command(plan.config, config_file), environment)
    if exit_code in (*INTERRUPTED, RESUME) and list_checkpoints(config_file.parent):
        resume = f"--config {shlex.quote(str(config_file))} --resume_from_checkpoint auto"
        console.print(f"stopped; to go on: python train.py {resume}", soft_wrap=True)
    return exit_code


def worker_environment(config: RunConfig, machine: Machine) -> dict[str, str]:
    """The environment of the ranks: ours, with what decides speed and the choice of device."""
    environment = dict(os.environ)
    bin_folder = str(Path(sys.executable).parent)  # its ninja, not one that happens to be in PATH
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")])
    )
    environment["TORCH_EXTENSIONS_DIR"] = str(extensions_folder(environment))
    threads = max(1, machine.num_cores // int(config.parallel.num_processes))
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if machine.num_gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def worker_command(config: RunConfig, config_file: Path) -> list[str]:
    """torchrun on this machine alone.

    Static rendezvous: the c10d one fails where the host's own name resolves to 127.0.1.1.
    """
    return [
        *(sys.executable, "-m", "hunyuan_train.launcher.agent"),
        *("--nnodes=1", "--node_rank=0", f"--nproc_per_node={config.parallel.num_processes}"),
        *("--master_addr=127.0.0.1", f"--master_port={free_port()}", "--max_restarts=0"),
        *(str(REPOSITORY / "train.py"), "--config", str(config_file)),
    ]


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
