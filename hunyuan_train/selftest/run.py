"""The cases of a selftest: checked one after the other, and shown.

What is imported here reads the environment that `commands.py` has set.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.doctor.preflight import Preflight
from hunyuan_train.launcher.host.extension import (
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.log import console
from hunyuan_train.selftest.compare import Errors
from hunyuan_train.selftest.hosts import RanksOnHosts
from hunyuan_train.selftest.oracle import RanksHere, Verdict, check_cases
from hunyuan_train.selftest.parity_cases import ParityCase, choose_cases
from hunyuan_train.selftest.report import as_data, describe_verdict, make_table
from hunyuan_train.terminal import PlainConsole

logger = logging.getLogger(__name__)


def check_and_show(
    arguments: argparse.Namespace,
    machine: Machine,
    config: RunConfig,
    counts: Sequence[int],
    preflight: Preflight | None,
) -> int:
    """Check the cases that are asked for, and show what came of them.

    Args:
        arguments: of the command.
        machine: this one.
        config: settings of the launch.
        counts: numbers of processes to check with on this machine.
        preflight: hosts to check on instead; None: this machine alone.
    """
    check: Callable[[ParityCase], Errors]
    if preflight is None:
        check, num_gpus = RanksHere(), machine.num_gpus
    else:
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
    if preflight is None:
        compile_extensions(cases, machine)
    verdicts = check_and_tell(cases, check)
    show(verdicts, is_json=arguments.json)
    return int(any(verdict.wrong for verdict in verdicts))


def check_and_tell(
    cases: Sequence[ParityCase], check: Callable[[ParityCase], Errors]
) -> list[Verdict]:
    """Check the cases one after the other, and log what comes of each."""
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


def show(verdicts: Sequence[Verdict], *, is_json: bool) -> None:
    """Print a table for people, or a list for programs."""
    if is_json:
        print(json.dumps(as_data(verdicts), indent=1))  # noqa: T201 the answer itself
    else:
        PlainConsole().print(make_table(verdicts))


def compile_extensions(cases: Sequence[ParityCase], machine: Machine) -> None:
    """Compile what any of the cases loads."""
    extensions = {
        extension
        for case in cases
        for extension in needed_extensions(case.run.config, num_gpus=machine.num_gpus)
    }
    folder = extensions_folder(os.environ)
    for extension in sorted(extensions, key=lambda one: one.name):
        prepare_extension(extension, folder=folder, environment=os.environ, console=console)
