"""A real all-reduce across the hosts of a run, through the same agents as the run itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.doctor.checks import Finding
from hunyuan_train.launcher.job.jobs import Rendezvous, host_environment, make_job, ranks_command
from hunyuan_train.launcher.job.output import split_mark
from hunyuan_train.launcher.job.watch import run_jobs
from hunyuan_train.terminal import PlainConsole

SCRIPT = Path(__file__).with_name("allreduce.py")
MIN_MBIT = 800.0  # slower than gigabit: no training across such hosts ends
SLOW_SHARE = 0.5  # of the middle pair: a cable or a port that lags behind the others


@dataclass(frozen=True, kw_only=True, slots=True)
class Bandwidth:
    """What the network between the hosts carries."""

    all_reduce_mbit: float  # of the slowest rank's share: bytes that cross its cable, both ways
    pairs_mbit: dict[tuple[Host, Host], float]


def measure_bandwidth(
    cluster: Cluster, launch: LaunchConfig, rendezvous: Rendezvous, machine: Machine
) -> Bandwidth | str:
    """Run the all-reduce with one process per host; returns why it failed, if it did."""
    one_each = replace_slots(cluster)
    lines: list[str] = []
    interfaces = {replace(host, slots=1): name for host, name in rendezvous.interfaces.items()}
    rendezvous = replace(rendezvous, interfaces=interfaces)

    jobs = [
        make_job(
            host,
            one_each,
            launch,
            commands=[ranks_command(one_each, host, rendezvous, [str(SCRIPT)])],
            files={},
            environment=host_environment(host, one_each, rendezvous, machine),
        )
        for host in one_each.hosts
    ]
    outcome = run_jobs(
        jobs, launch, console=PlainConsole(quiet=True), show_output=lambda _: lines.append
    )
    results = [text for _, text in map(split_mark, lines) if text.startswith('{"num_bytes"')]
    if outcome.reason != "done" or not results:
        return outcome.words or "the test said nothing"
    return read_result(results[-1], cluster.hosts)


def replace_slots(cluster: Cluster) -> Cluster:
    """The same hosts with one process each."""
    hosts = tuple(replace(host, slots=1) for host in cluster.hosts)
    local = replace(cluster.local, slots=1) if cluster.local else None
    return Cluster(hosts=hosts, local=local)


def read_result(line: str, hosts: Sequence[Host]) -> Bandwidth:
    """Turn the seconds of a measurement into what the cables carried."""
    result = json.loads(line)
    bits = 8e-6 * result["num_bytes"]
    # A ring all-reduce sends 2 (n - 1) / n of the bytes over every cable.
    crossing = 2 * (len(hosts) - 1) / len(hosts)
    pairs = list(pairwise([*hosts, hosts[0]])) if len(hosts) > 2 else [(hosts[0], hosts[-1])]
    return Bandwidth(
        all_reduce_mbit=bits * crossing / result["all_reduce_seconds"],
        pairs_mbit={
            pair: 2 * bits / seconds
            for pair, seconds in zip(pairs, result["pair_seconds"], strict=False)
        },
    )


def judge_bandwidth(bandwidth: Bandwidth, hosts: Sequence[Host]) -> list[Finding]:
    """A verdict per host: by the faster of its pairs, so that a slow neighbour is not its fault."""
    middle = sorted(bandwidth.pairs_mbit.values())[len(bandwidth.pairs_mbit) // 2]
    findings = []
    for host in hosts:
        own = [speed for pair, speed in bandwidth.pairs_mbit.items() if host in pair]
        is_good = max(own) >= MIN_MBIT and max(own) >= SLOW_SHARE * middle
        findings.append(
            Finding(
                host=host,
                check="bandwidth",
                verdict="ok" if is_good else "failed",
                found=f"{max(own):,.0f} Mbit/s to its neighbours, "
                f"{bandwidth.all_reduce_mbit:,.0f} in an all-reduce of all",
                wanted=f"{MIN_MBIT:,.0f} Mbit/s, and no less than half of what others have",
                remedy="" if is_good else "ethtool INTERFACE; look at its cable, port and driver",
            )
        )
    return findings
