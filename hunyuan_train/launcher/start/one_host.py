"""A run on this machine alone: no ssh, and the ranks share our terminal."""

from pathlib import Path

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.job.jobs import Rendezvous, make_jobs
from hunyuan_train.launcher.job.outcome import Outcome
from hunyuan_train.launcher.job.output import HostOutput
from hunyuan_train.launcher.job.watch import run_jobs
from hunyuan_train.terminal import PlainConsole


def try_here(cluster: Cluster, machine: Machine, config: RunConfig) -> Outcome:
    """One try on this machine alone: no ssh, and the ranks share our terminal."""
    # Nothing of a run on one machine is to be heard, or reached, from another.
    interfaces = dict.fromkeys(cluster.hosts, "lo")
    rendezvous = Rendezvous(address="127.0.0.1", port=0, interfaces=interfaces)
    console = PlainConsole(stderr=True, soft_wrap=True)
    log_folder = Path(config.train.output_dir, "log")
    # What is no JSON, of a library in C++ say, reaches a screen of JSON by way of us.
    log_folder.mkdir(parents=True, exist_ok=True)
    output = HostOutput(console, log_folder, is_json=True) if config.logs.json else None
    try:
        return run_jobs(
            make_jobs(config, cluster, rendezvous, machine),
            config.launch,
            console=console,
            show_output=output.of if output else lambda _: None,
            log_folder=log_folder,
        )
    finally:
        if output:
            output.close()
