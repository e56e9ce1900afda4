"""From a command line to running ranks on this machine."""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.load import REPOSITORY, dump_config
from hunyuan_train.config.resolve import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.launcher.extension import (
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.plan import show_plan
from hunyuan_train.launcher.preflight import make_plan, prepare_data
from hunyuan_train.launcher.supervise import run_supervised
from hunyuan_train.launcher.worker import FAILURES_VARIABLE


def launch(config: RunConfig, *, is_dry_run: bool) -> int:
    """Check a run, say what it will do, start its ranks and wait for them.

    Returns:
        the exit code of the rank that failed first, or 0.
    """
    console = Console(stderr=True)
    machine = detect_machine()
    plan = make_plan(config, machine=machine)
    show_plan(plan, prepare_data(plan), console)
    if is_dry_run:
        console.print("dry run: every check passed, nothing was started")
        return 0
    environment = worker_environment(plan.config, machine)
    for extension in needed_extensions(plan.config, num_gpus=machine.num_gpus):
        folder = extensions_folder(environment)
        prepare_extension(extension, folder=folder, environment=environment, console=console)
    config_file = prepare_output_folder(plan.config, console)
    with tempfile.TemporaryDirectory(prefix="hunyuan_train-") as failures:
        environment[FAILURES_VARIABLE] = failures
        return run_supervised(worker_command(plan.config, config_file), environment)


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


def prepare_output_folder(config: RunConfig, console: Console) -> Path:
    """Make the folder of a run, move an earlier run aside where asked to, write config.yaml."""
    folder = Path(config.train.output_dir)
    is_resumed = config.train.resume_from_checkpoint is not None
    if config.train.overwrite_output_dir and not is_resumed and (folder / "config.yaml").exists():
        previous = folder.with_name(f"{folder.name}.previous")
        if previous.exists():
            shutil.rmtree(previous)
        folder.rename(previous)
        console.print(f"the earlier run in {folder} moved to {previous}")
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.yaml"
    dump_config(config, config_file)
    return config_file
