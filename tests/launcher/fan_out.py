"""Runs a command of a test on several hosts, as a launcher on the first of them.

    python -m tests.launcher.fan_out SETTINGS   a JSON object: hosts, code, ssh_config, launch,
                                             log_folder, meeting_seconds

The code is Python; each host runs it under its agent. How it ended is the last line on stdout.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.cluster import Cluster, find_local
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.job import watch
from hunyuan_train.launcher.job.jobs import make_job
from hunyuan_train.launcher.job.output import HostOutput


def main() -> int:
    settings = json.loads(sys.argv[1])
    watch.RENDEZVOUS_SECONDS = settings["meeting_seconds"]
    launch = LaunchConfig(ssh_config=settings["ssh_config"], **settings["launch"])
    hosts = tuple(Host(address, 1) for address in settings["hosts"])
    cluster = Cluster(hosts=hosts, local=find_local(hosts, None))
    jobs = [
        make_job(
            host,
            cluster,
            launch,
            commands=[[sys.executable, "-u", "-c", settings["code"], str(number), "{folder}"]],
            files={},
            environment={"SECRET": os.environ.get("SECRET", "")},
        )
        for number, host in enumerate(hosts)
    ]
    console = Console(file=sys.stdout, width=200)
    folder = Path(settings["log_folder"])
    output = HostOutput(console, folder)
    outcome = watch.run_jobs(
        jobs, launch, console=console, show_output=output.of, log_folder=folder
    )
    output.close()
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
