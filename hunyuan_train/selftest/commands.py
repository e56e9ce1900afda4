"""`python -m hunyuan_train selftest`: is what trains here what one plain process would train?"""

import argparse
import json
import logging
import os

from rich.console import Console

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.load import build_config
from hunyuan_train.config.resolve import Machine
from hunyuan_train.launcher.environment import rank_environment
from hunyuan_train.launcher.extension import (
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.log import console, log_to_screen

logger = logging.getLogger(__name__)

ON_CPU = (1, 2, 4)
DESCRIPTION = """\
Trains a tiny model of the real architecture under every way of splitting it that this project
offers, and in one plain process in float64 without any of them, and compares losses, every
gradient, the clip coefficient and the weights after several steps. The steps hold what has gone
wrong elsewhere: experts without tokens, uneven ranks, ranks without labels or without data.
Exit code 1: something is out of tolerance.
"""


def add_selftest_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    command = subparsers.add_parser(
        "selftest",
        help="compare every parallel plan with one plain process",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--recipe",
        metavar="R",
        help="check this recipe's methods instead of all plans: tiny, lora, full or a YAML file",
    )
    command.add_argument(
        "--processes",
        metavar="N,N",
        help="numbers of processes; default: 1,2,4 on the CPU, else powers of two up to all GPUs",
    )
    command.add_argument("--only", metavar="TEXT", help="only plans with this in their names")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=run_selftest)


def run_selftest(arguments: argparse.Namespace) -> int:
    """Check the plans that are asked for and show what came of them."""
    machine = detect_machine()
    counts = choose_processes(arguments.processes, machine)
    log_to_screen()
    prepare_environment(machine)
    # torch and DeepSpeed, which read the environment
    from hunyuan_train.selftest.oracle import check_plans
    from hunyuan_train.selftest.plans import list_plans, recipe_plan
    from hunyuan_train.selftest.report import as_data, last_line, make_table

    plans = [
        plan
        for count in counts
        for plan in (
            [recipe_plan(arguments.recipe, count, num_gpus=machine.num_gpus)]
            if arguments.recipe
            else list_plans(count, num_gpus=machine.num_gpus)
        )
        if (arguments.only or "") in plan.name
    ]
    if not plans:
        raise ConfigError(f"only is {arguments.only!r}, which is in no plan's name; leave it out")
    verdicts = []
    for number, verdict in enumerate(check_plans(plans), start=1):
        verdicts.append(verdict)
        if verdict.failure:
            logger.warning("%s", verdict.failure)
        logger.info(
            "%d/%d  %d processes, %s: %s (%.0f s)",
            *(number, len(plans), verdict.plan.num_processes, verdict.plan.name),
            last_line(verdict.failure) or ", ".join(verdict.wrong) or "equal",
            verdict.seconds,
        )
    if arguments.json:
        print(json.dumps(as_data(verdicts), indent=1))  # noqa: T201 the answer itself
    else:
        Console().print(make_table(verdicts))
    return int(any(verdict.wrong for verdict in verdicts))


def prepare_environment(machine: Machine) -> None:
    """Compile what any plan may load, and set what ranks read when they import it."""
    config = build_config({"num_processes": machine.num_cores, "optimizer": "offload"})
    environment = rank_environment(
        os.environ,
        num_processes=machine.num_cores,
        num_gpus=machine.num_gpus,
        num_cores=machine.num_cores,
    )
    folder = extensions_folder(environment)
    for extension in needed_extensions(config, num_gpus=machine.num_gpus):
        prepare_extension(extension, folder=folder, environment=environment, console=console)
    os.environ.update(environment)


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
        raise ConfigError(f"processes is {given}; a plan needs 1 or more")
    if machine.num_gpus and max(counts) > machine.num_gpus:
        raise ConfigError(
            f"processes is {given}, but this machine has {machine.num_gpus} GPU(s), one for each "
            "process; give fewer, or set DS_ACCELERATOR=cpu"
        )
    return counts
