"""`hunyuan-train selftest`: is what trains here what one plain process would train?"""

import argparse
import os

from hunyuan_train.config.load import build_config
from hunyuan_train.config.resolve import choose_num_processes
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.deferred import Deferred
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import find_cluster, with_environment
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.environment import rank_environment
from hunyuan_train.launcher.start.many import preflight_or_refuse
from hunyuan_train.log import console, log_to_screen

ON_CPU = (1, 2, 4)
DESCRIPTION = """\
Train a tiny model of the real architecture in every parallel layout of this project, and in one
plain float64 process. Compare losses, every gradient, the clip coefficient and the weights after
several steps. The steps contain known troublemakers: experts without tokens, ranks with unequal
loads, ranks without labels or data. With NODE_IP_LIST or HOSTFILE, as for train.sh, the test runs
on all hosts at once. Exit code 1: something is out of tolerance. Fused kernels are cases of their
own. Most run on GPUs only: a machine that cannot run one says so, and does not count it as equal.
"""


def add_selftest_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    command = subparsers.add_parser(
        "selftest",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--recipe",
        metavar="R",
        help="check this recipe's methods instead of all cases: tiny, lora, one_gpu, full, long "
        "or a file",
    )
    command.add_argument(
        "--processes",
        metavar="N,N",
        help="numbers of processes (default: 1,2,4 on the CPU, otherwise powers of two up to all "
        "GPUs)",
    )
    command.add_argument("--only", metavar="TEXT", help="only cases with this in their names")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=run_selftest)


def run_selftest(arguments: argparse.Namespace) -> Deferred:
    """Find the hosts, and set what is read when torch is imported."""
    machine = detect_machine()
    config = with_environment(build_config({}), os.environ)
    slots = choose_num_processes(config, machine)
    cluster = find_cluster(config, os.environ, default_slots=slots)
    if not cluster.is_alone and arguments.processes:
        raise ConfigError(
            f"processes is {arguments.processes}, but on several hosts all of their slots take "
            "part; leave it out, or write fewer slots into NODE_IP_LIST"
        )
    log_to_screen()
    given = {"arguments": arguments, "machine": machine, "config": config}
    if cluster.is_alone:  # other hosts may have GPUs where this machine has none
        counts = choose_processes(arguments.processes, machine)
        set_environment(machine)
        return Deferred("selftest", given | {"counts": counts, "preflight": None})
    preflight = preflight_or_refuse(config, cluster, console)
    return Deferred("selftest", given | {"counts": [], "preflight": preflight})


def set_environment(machine: Machine) -> None:
    """Set what ranks, and the libraries here, read when they are imported."""
    os.environ.update(
        rank_environment(
            os.environ,
            num_processes=machine.num_cores,
            num_gpus=machine.num_gpus,
            num_cores=machine.num_cores,
        )
    )


def choose_processes(given: str | None, machine: Machine) -> list[int]:
    """The numbers of processes to check with.

    Raises:
        ConfigError: not numbers, or more than there are GPUs.
    """
    if given is None:
        if not machine.num_gpus:
            return list(ON_CPU)
        powers = [2**power for power in range(10) if 2**power <= machine.num_gpus]
        return sorted({*powers, machine.num_gpus})
    try:
        counts = [int(number) for number in given.split(",")]
    except ValueError as error:
        raise ConfigError(f"processes is {given}; give numbers, such as 1,2,4") from error
    if min(counts) < 1:
        raise ConfigError(f"processes is {given}; a case needs 1 or more")
    if machine.num_gpus and max(counts) > machine.num_gpus:
        raise ConfigError(
            f"processes is {given}, but this machine has {machine.num_gpus} GPU(s), one for each "
            "process; give fewer, or set DS_ACCELERATOR=cpu"
        )
    return counts
