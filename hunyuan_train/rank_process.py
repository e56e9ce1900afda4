"""One of the ranks that a launcher started: checks where it stands, and runs."""

import gc
import sys

from hunyuan_train.config.load import CommandLine
from hunyuan_train.launcher.exit_codes import SUCCESS
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.heartbeat import announce_rank
from hunyuan_train.launcher.rank.worker import (
    check_place,
    mark_done,
    prepare_extensions,
    report_crash,
    started_slots,
    take_environment,
)
from hunyuan_train.launcher.start.inputs_by_name import locate_downloads
from hunyuan_train.launcher.start.resolve_here import resolve_here


def run_rank(command: CommandLine) -> int:
    """Run what `hunyuan-train train` was asked, and return the exit code."""
    sys.excepthook = report_crash
    take_environment()
    check_place()
    heartbeat = announce_rank()
    slots = started_slots(command.config)
    config = locate_downloads(command.config)
    machine = detect_machine()
    resolved = resolve_here(config, machine=machine, slots=slots)
    if not command.is_dry_run:
        prepare_extensions(resolved.config, num_gpus=machine.num_gpus)
    gc.disable()
    # torch and DeepSpeed, which read the environment: only once nothing is known to be wrong
    from hunyuan_train.run import run  # noqa: PLC0415

    gc.freeze()  # a million objects that stay: they are not searched for garbage, now or later
    gc.enable()
    exit_code = SUCCESS if command.is_dry_run else run(resolved, heartbeat)
    if exit_code == SUCCESS:
        mark_done()
    return exit_code
