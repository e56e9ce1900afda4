"""A run on several hosts: looked at before every try, waited for after a failure."""

import time
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.doctor.preflight import Preflight, run_preflight
from hunyuan_train.launcher.doctor.show import describe
from hunyuan_train.launcher.exit_codes import HOST_LOST
from hunyuan_train.launcher.job.jobs import make_jobs
from hunyuan_train.launcher.job.outcome import Outcome
from hunyuan_train.launcher.job.output import HostOutput
from hunyuan_train.launcher.job.watch import run_jobs
from hunyuan_train.launcher.start.resolve_here import resolve_here

WAIT_POLL_SECONDS = 3.0


def preflight_or_refuse(config: RunConfig, cluster: Cluster, console: Console) -> Preflight:
    """Look at all hosts before the first try.

    Raises:
        ConfigError: with what is wrong on which host, and what fixes it.
    """
    began = time.monotonic()
    with console.status(f"looking at {len(cluster.hosts)} hosts"):
        preflight = run_preflight(config, cluster)
    if preflight.failed:
        raise ConfigError(
            f"{len(preflight.failed_hosts)} of {len(cluster.hosts)} hosts are not fit for the "
            f"run:\n{describe(preflight.failed)}"
        )
    show_warnings(preflight, console)
    seconds = time.monotonic() - began
    console.print(f"{len(cluster.hosts)} hosts are fit for the run (looked at in {seconds:.1f} s)")
    return preflight


def show_warnings(preflight: Preflight, console: Console) -> None:
    """Say what is unusual, but no reason to stop."""
    words = describe(preflight.findings)
    if words:
        console.print(words, markup=False, highlight=False, soft_wrap=True)


class ManyHosts:
    """The hosts of a run over all its tries; called for each of them."""

    def __init__(self, asked: RunConfig, preflight: Preflight, console: Console) -> None:
        self.asked = asked  # as the user gave it: what is "auto" may change with the hosts
        self.cluster = preflight.cluster
        self.has_shrunk = False  # hosts that did not come back are left out
        self.preflight: Preflight | None = preflight  # of the try that comes
        self.console = console

    def __call__(self, config: RunConfig) -> Outcome:
        """Try once, on the hosts that are there."""
        preflight = self.preflight or self._wait_for_hosts()
        self.preflight = None  # hosts may have changed by the next try
        if preflight is None:
            return self._give_up()
        self.cluster = preflight.cluster
        return self._run(config, preflight)

    def _run(self, config: RunConfig, preflight: Preflight) -> Outcome:
        asked = with_settings(
            self.asked, resume_from_checkpoint=config.checkpoints.resume_from_checkpoint
        )
        if self.has_shrunk:
            # Fewer hosts take fewer rows a step, as --min_hosts allows; nothing else has changed.
            asked = with_settings(asked, ignore_settings_change=True)
        machine = preflight.machine
        run = resolve_here(asked, machine=machine, slots=self.cluster.slots)
        log_folder = Path(config.train.output_dir, "log")
        log_folder.mkdir(parents=True, exist_ok=True)
        output = HostOutput(self.console, log_folder, is_json=config.logs.json)
        rendezvous = preflight.rendezvous(config.launch.master_port)
        try:
            return run_jobs(
                make_jobs(run.config, self.cluster, rendezvous, machine),
                config.launch,
                console=self.console,
                show_output=output.of,
                log_folder=log_folder,
            )
        finally:
            output.close()

    def _wait_for_hosts(self) -> Preflight | None:
        """Look at the hosts until all are fit; in the end, take those that are, if allowed."""
        deadline = time.monotonic() + self.asked.launch.wait_for_hosts_seconds
        said = ""
        while True:
            preflight = run_preflight(self.asked, self.cluster)
            if not preflight.failed:
                return preflight
            words = describe(preflight.failed)
            if words != said:
                self.console.print(f"waiting for hosts:\n{words}", markup=False, highlight=False)
                said = words
            if time.monotonic() > deadline:
                return self._without(preflight)
            time.sleep(WAIT_POLL_SECONDS)

    def _without(self, preflight: Preflight) -> Preflight | None:
        """The preflight of the hosts that are fit, where the user allows to go on with them."""
        left = self.cluster.without(preflight.failed_hosts)
        least = self.asked.launch.min_hosts
        if least is None or len(left.hosts) < least:
            return None
        names = ", ".join(host.address for host in preflight.failed_hosts)
        self.console.print(f"going on without {names}, on {len(left.hosts)} hosts")
        smaller = run_preflight(self.asked, left)
        self.has_shrunk = True
        return None if smaller.failed else smaller

    def _give_up(self) -> Outcome:
        seconds = self.asked.launch.wait_for_hosts_seconds
        return Outcome(
            reason="unready",
            exit_code=HOST_LOST,
            words=f"error: hosts did not come back within {seconds:g} s "
            "(--wait_for_hosts_seconds); --min_hosts allows to go on with fewer",
        )
