"""Checks a case on the hosts of a run: one job on all of them, through the agents of a run."""

import json

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.doctor.preflight import Preflight
from hunyuan_train.launcher.job.jobs import (
    host_environment,
    make_job,
    prepare_commands,
    ranks_command,
)
from hunyuan_train.launcher.job.output import split_mark
from hunyuan_train.launcher.job.watch import run_jobs
from hunyuan_train.selftest.compare import Errors
from hunyuan_train.selftest.local_ranks import RanksError
from hunyuan_train.selftest.parity_cases import ParityCase
from hunyuan_train.terminal import PlainConsole

MODULE = "hunyuan_train.selftest.rank"


class RanksOnHosts:
    """Trains cases on the slots of all hosts; rank 0 trains the reference and compares."""

    def __init__(self, preflight: Preflight, launch: LaunchConfig, recipe: str | None) -> None:
        self.preflight = preflight
        self.launch = launch
        self.recipe = [recipe] if recipe else []

    @property
    def num_processes(self) -> int:
        """Slots of all hosts."""
        return sum(self.preflight.cluster.slots)

    @property
    def num_gpus(self) -> int:
        """One for each process, or none."""
        return self.num_processes if self.preflight.machine.num_gpus else 0

    def __call__(self, case: ParityCase) -> Errors:
        """Train a case and compare it.

        Raises:
            RanksError: a rank or a host failed.
        """
        cluster, machine = self.preflight.cluster, self.preflight.machine
        rendezvous = self.preflight.rendezvous(self.launch.master_port)
        words = (case.name, str(self.num_processes), str(self.num_gpus), *self.recipe)
        jobs = [
            make_job(
                host,
                cluster,
                self.launch,
                commands=[
                    *prepare_commands(case.run.config, machine),
                    ranks_command(cluster, host, rendezvous, ["-m", MODULE, *words]),
                ],
                files={},
                environment=host_environment(host, cluster, rendezvous, machine),
            )
            for host in cluster.hosts
        ]
        lines: list[str] = []
        outcome = run_jobs(
            jobs, self.launch, console=PlainConsole(quiet=True), show_output=lambda _: lines.append
        )
        if outcome.reason == "stopped":
            raise KeyboardInterrupt
        answers = [text for _, text in map(split_mark, lines) if text.startswith('{"loss"')]
        if outcome.reason != "done" or not answers:
            raise RanksError(outcome.words or "\n".join(["the ranks said nothing", *lines]))
        return Errors(**json.loads(answers[-1]))
