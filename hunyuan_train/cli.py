"""The commands. Each imports what it needs when it runs, so that `--help` answers at once."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from hunyuan_train.checkpoint.errors import CheckpointError, NoRoomError, NotCopiedError
from hunyuan_train.config.commands import add_schema_command
from hunyuan_train.config.describe import describe_settings
from hunyuan_train.config.load import (
    DEMO,
    CommandLine,
    describe_long_path,
    load_command_line,
)
from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.export.commands import add_checkpoint_commands
from hunyuan_train.hub.commands import add_download_command
from hunyuan_train.interrupts import ending_at_ctrl_c
from hunyuan_train.launcher.exit_codes import (
    FAILURE,
    INTERRUPTED,
    NO_ROOM,
    NOT_COPIED,
    SUCCESS,
    USER_ERROR,
)
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.heartbeat import announce_rank
from hunyuan_train.launcher.rank.worker import (
    is_worker,
    mark_done,
    report_crash,
    report_failure,
    started_slots,
    take_environment,
)
from hunyuan_train.launcher.start.inputs_by_name import locate_downloads
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.planner.command import run_plan
from hunyuan_train.quantize.commands import add_quantize_command, merge_into_quantised
from hunyuan_train.report.commands import add_report_command
from hunyuan_train.report.push import add_push_command
from hunyuan_train.report.watch import add_watch_command
from hunyuan_train.selftest.commands import add_selftest_command
from hunyuan_train.serve.commands import add_chat_command
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.evaluate import add_evaluate_command
from hunyuan_train.serve.start import add_serve_command
from hunyuan_train.shipped import VERSION
from hunyuan_train.terminal import PlainParser, say
from hunyuan_train.trainer.errors import TrainingError
from hunyuan_train.verify_resume import add_verify_resume


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    A mistake of the user's, and a training that cannot go on, end as one paragraph; Ctrl-C without
    a word.
    """
    try:
        return run_command(arguments)
    except NoRoomError as error:
        report_failure(f"error: {error}")
        return NO_ROOM
    except NotCopiedError as error:
        report_failure(f"error: {error}")
        return NOT_COPIED
    except (ConfigError, DataError, CheckpointError, ServeError) as error:
        report_failure(f"error: {error}")
        return USER_ERROR
    except TrainingError as error:
        report_failure(f"error: {error}")
        return FAILURE
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or error.filename is None:
            raise
        report_failure(f"error: the path is {describe_long_path(os.fsdecode(error.filename))}")
        return USER_ERROR
    except KeyboardInterrupt:
        # Python notes that it met Ctrl-C in code given as text (a library's, while it is imported),
        # and would end itself by the signal, whatever we return; new code as text lets it forget.
        exec("")
        return INTERRUPTED


def run_command(arguments: Sequence[str]) -> int:
    """Hand the arguments to the command that the first one names."""
    if arguments and arguments[0] == "train":
        return train(arguments[1:])
    if arguments and arguments[0] == "plan":
        return run_plan(arguments[1:])
    if arguments and arguments[0] == "doctor":
        with ending_at_ctrl_c():
            from hunyuan_train.launcher.doctor.commands import run_doctor

        return run_doctor(arguments[1:])
    if arguments and arguments[0] == "rehearse":
        from hunyuan_train.rehearsal.commands import run_rehearse

        return run_rehearse(arguments[1:])
    parser = build_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        return USER_ERROR
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Lists every command, and knows the arguments of the one that is asked for.

    Train, plan, rehearse and doctor are only listed: they read their flags themselves.
    """
    parser: argparse.ArgumentParser = PlainParser(
        prog="hunyuan-train", description="Fine-tune Hunyuan models, and what goes with it."
    )
    parser.add_argument("--version", action="version", version=f"hunyuan-train {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="fine-tune a model (train --help lists the settings)")
    commands.add_parser("plan", help="say what a run needs, and what would fit")
    commands.add_parser("rehearse", help="run the engine at its true size on pretended GPUs")
    commands.add_parser("doctor", help="look at the hosts of a run before it starts")
    data = commands.add_parser("data", help="check, convert, show and measure dialogues")
    if arguments and arguments[0] == "data":
        with ending_at_ctrl_c():
            from hunyuan_train.data.commands import add_data_commands

        add_data_commands(data.add_subparsers(metavar="COMMAND", required=True))
    add_checkpoint_commands(commands, merge_into_quantised=merge_into_quantised)
    add_quantize_command(commands)
    add_selftest_command(commands)
    add_chat_command(commands)
    add_evaluate_command(commands)
    add_serve_command(commands, detect_machine=detect_machine)
    add_watch_command(commands)
    add_report_command(commands)
    add_download_command(commands)
    add_push_command(commands)
    add_verify_resume(commands)
    add_schema_command(commands)
    return parser


def load_or_demonstrate(arguments: Sequence[str]) -> tuple[CommandLine, Sequence[str]]:
    """What was asked, and the words of it; with nothing to train named, they are the demo's."""
    command = load_command_line(arguments)
    if not command.is_demo:
        return command, arguments
    words = [*DEMO, *arguments]
    return replace(load_command_line(words), given=command.given), words


def train(arguments: Sequence[str]) -> int:
    """Check a run and start its ranks; in one of them, run."""
    if "--help" in arguments or "-h" in arguments:
        print(describe_settings())  # noqa: T201 the answer itself, for a pager or grep
        return SUCCESS
    command, arguments = load_or_demonstrate(arguments)
    if command.recipe is not None:
        say(command.recipe.rstrip())
        return SUCCESS
    if not is_worker():
        with ending_at_ctrl_c():
            from hunyuan_train.launcher.start.launch import start_run

        return start_run(command, arguments)
    sys.excepthook = report_crash
    take_environment()
    heartbeat = announce_rank()
    slots = started_slots(command.config)
    config = locate_downloads(command.config)
    resolved = resolve_here(config, machine=detect_machine(), slots=slots)
    from hunyuan_train.run import run  # torch and DeepSpeed: only once nothing is known to be wrong

    exit_code = SUCCESS if command.is_dry_run else run(resolved, heartbeat)
    if exit_code == SUCCESS:
        mark_done()
    return exit_code
