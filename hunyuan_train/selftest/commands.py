"""`hunyuan-train selftest`: is what trains here what one plain process would train?"""

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hunyuan_train.config.load import build_config
from hunyuan_train.config.resolve import choose_num_processes
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import find_cluster, with_environment
from hunyuan_train.launcher.host.extension import (
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.environment import rank_environment
from hunyuan_train.launcher.start.many import preflight_or_refuse
from hunyuan_train.log import console, log_to_screen
from hunyuan_train.terminal import PlainConsole

if TYPE_CHECKING:  # they import torch, which must read the environment that is set here
    from hunyuan_train.selftest.compare import Errors
    from hunyuan_train.selftest.oracle import Verdict
    from hunyuan_train.selftest.parity_cases import ParityCase

logger = logging.getLogger(__name__)

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


def run_selftest(arguments: argparse.Namespace) -> int:
    """Check the cases that are asked for, here or on all hosts, and show what came of them."""
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
    if cluster.is_alone:  # other hosts may have GPUs where this machine has none
        set_environment(machine)
    # torch and DeepSpeed, which read the environment
    from hunyuan_train.selftest.hosts import RanksOnHosts
    from hunyuan_train.selftest.oracle import RanksHere
    from hunyuan_train.selftest.parity_cases import choose_cases

    check: Callable[[ParityCase], Errors]
    if cluster.is_alone:
        counts, num_gpus = choose_processes(arguments.processes, machine), machine.num_gpus
        check = RanksHere()
    else:
        preflight = preflight_or_refuse(config, cluster, console)
        check = RanksOnHosts(preflight, config.launch, arguments.recipe)
        counts, num_gpus = [check.num_processes], check.num_gpus
    cases = [
        case
        for count in counts
        for case in choose_cases(count, arguments.recipe, num_gpus=num_gpus)
        if (arguments.only or "") in case.name
    ]
    if not cases:
        raise ConfigError(f"only is {arguments.only!r}, which is in no case's name; leave it out")
    if cluster.is_alone:
        compile_extensions(cases, machine)
    verdicts = check_and_tell(cases, check)
    show(verdicts, is_json=arguments.json)
    return int(any(verdict.wrong for verdict in verdicts))


def check_and_tell(
    cases: Sequence["ParityCase"], check: Callable[["ParityCase"], "Errors"]
) -> list["Verdict"]:
    """Check the cases one after the other, and log what comes of each."""
    from hunyuan_train.selftest.oracle import check_cases
    from hunyuan_train.selftest.report import describe_verdict

    verdicts = []
    for number, verdict in enumerate(check_cases(cases, check), start=1):
        verdicts.append(verdict)
        if verdict.failure:
            logger.warning("%s", verdict.failure)
        logger.info(
            "%d/%d  %d processes, %s: %s (%.0f s)",
            *(number, len(cases), verdict.case.num_processes, verdict.case.name),
            describe_verdict(verdict),
            verdict.seconds,
        )
    return verdicts


def show(verdicts: Sequence["Verdict"], *, is_json: bool) -> None:
    """Print a table for people, or a list for programs."""
    from hunyuan_train.selftest.report import as_data, make_table

    if is_json:
        print(json.dumps(as_data(verdicts), indent=1))  # noqa: T201 the answer itself
    else:
        PlainConsole().print(make_table(verdicts))


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


def compile_extensions(cases: Sequence["ParityCase"], machine: Machine) -> None:
    """Compile what any of the cases loads."""
    extensions = {
        extension
        for case in cases
        for extension in needed_extensions(case.run.config, num_gpus=machine.num_gpus)
    }
    folder = extensions_folder(os.environ)
    for extension in sorted(extensions, key=lambda one: one.name):
        prepare_extension(extension, folder=folder, environment=os.environ, console=console)


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
