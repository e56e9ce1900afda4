"""`hunyuan-train doctor`: are all hosts of a run fit for it?"""

import os
import subprocess
from collections.abc import Sequence

from rich.console import Console

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.load import load_command_line
from hunyuan_train.config.resolve import choose_num_processes
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.launcher.cluster.cluster import Cluster, find_cluster, with_environment
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import ssh_command
from hunyuan_train.launcher.doctor.bandwidth import judge_bandwidth, measure_bandwidth
from hunyuan_train.launcher.doctor.checks import Finding, choose_interface
from hunyuan_train.launcher.doctor.preflight import Preflight, run_preflight
from hunyuan_train.launcher.doctor.show import describe, show_table
from hunyuan_train.launcher.doctor.trust import collect_keys
from hunyuan_train.launcher.exit_codes import FAILURE, SUCCESS
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.terminal import PlainConsole

FIX_SECONDS = 10
SWITCHES = ("trust", "fix", "bandwidth")
HELP = """\
usage: NODE_IP_LIST=10.0.0.1:8,10.0.0.2:8 hunyuan-train doctor [--trust] [--fix]
           [--bandwidth] [any flag of train]

Check all hosts of a run at once. For each host and check, the output says what was found, what is
required and which command fixes it. This takes at most 5 seconds, or 60 with --bandwidth. Add the
flags of the run, so that its model, data and output folder are checked, too.

  --trust      store the ssh keys of hosts that are not known yet, and show their fingerprints
  --fix        run those fixes that can do no harm
  --bandwidth  measure the bandwidth of an all-reduce across the hosts

exit code: 0 if the run may start, 1 if something has to be fixed first, 2 for a wrong setting
"""


def run_doctor(arguments: Sequence[str]) -> int:
    """Examine the hosts that flags and environment name."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP, end="")  # noqa: T201 the answer itself, for a pager or grep
        return SUCCESS
    asked = {name for name in SWITCHES if f"--{name}" in arguments}
    flags = [word for word in arguments if word.removeprefix("--") not in asked]
    config = with_environment(load_command_line(flags).config, os.environ)
    slots = choose_num_processes(config, detect_machine())
    cluster = find_cluster(config, os.environ, default_slots=slots)
    console = PlainConsole(highlight=False)
    if "trust" in asked:
        show_keys(cluster, config.launch, console)
    preflight = run_preflight(config, cluster)
    if "fix" in asked and apply_fixes(preflight.findings, cluster, config.launch, console):
        preflight = run_preflight(config, cluster)
    findings = list(preflight.findings)
    if "bandwidth" in asked and not preflight.failed:
        findings += try_bandwidth(preflight, config, console)
    show_table(cluster.hosts, findings, console)
    console.print(describe_network(preflight), markup=False, soft_wrap=True, end="")
    console.print(describe(findings), markup=False, soft_wrap=True, end="\n" if findings else "")
    return FAILURE if any(one.verdict == "failed" for one in findings) else SUCCESS


def describe_network(preflight: Preflight) -> str:
    """By which interfaces the hosts will talk to each other; empty where one is not known."""
    reports = [report for report in preflight.reports if report.found]
    ways = [f"{report.host.address} by {choose_interface(report)}" for report in reports]
    if len(reports) < max(2, len(preflight.reports)) or not all(map(choose_interface, reports)):
        return ""
    return f"ranks will talk to each other at {', '.join(ways)}\n"


def show_keys(cluster: Cluster, launch: LaunchConfig, console: Console) -> None:
    """Note new host keys, and show all of them."""
    for key in collect_keys([host for host in cluster.hosts if host != cluster.local], launch):
        state = "now trusted" if key.is_new else "known"
        words = f"{key.fingerprint} ({state})" if key.fingerprint else "no key"
        if key.trouble:
            words += f"; {key.trouble.found}; fix: {key.trouble.remedy}"
        console.print(f"{key.host.address}: {words}", markup=False, soft_wrap=True)


def apply_fixes(
    findings: Sequence[Finding], cluster: Cluster, launch: LaunchConfig, console: Console
) -> bool:
    """Carry out what can do no harm; returns whether there was anything."""
    fixable = [finding for finding in findings if finding.fix]
    for finding in fixable:
        command = on_host(finding.host, cluster, launch, finding.fix)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FIX_SECONDS, check=False
        )
        result = "done" if done.returncode == 0 else done.stderr.strip()
        text = f"{finding.host.address}: {' '.join(finding.fix)}: {result}"
        console.print(text, markup=False, soft_wrap=True)
    return bool(fixable)


def on_host(
    host: Host, cluster: Cluster, launch: LaunchConfig, command: Sequence[str]
) -> list[str]:
    """A command for one host, with ssh where that is not this machine."""
    return list(command) if host == cluster.local else ssh_command(host, launch, command)


def try_bandwidth(preflight: Preflight, config: RunConfig, console: Console) -> list[Finding]:
    """The verdicts of an all-reduce; one failure for all hosts where it does not come about."""
    cluster = preflight.cluster
    if len(cluster.hosts) == 1:
        return []
    console.print("measuring an all-reduce across the hosts, up to a minute")
    rendezvous = preflight.rendezvous(None)
    measured = measure_bandwidth(cluster, config.launch, rendezvous, preflight.machine)
    if not isinstance(measured, str):
        return judge_bandwidth(measured, cluster.hosts)
    return [
        Finding(
            host=cluster.hosts[0],
            check="bandwidth",
            verdict="failed",
            found=measured,
            wanted="an all-reduce across all hosts",
            remedy="open all ports between the hosts in the firewall",
        )
    ]
