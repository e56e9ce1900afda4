"""The commands. Each imports what it needs when it runs, so that all of them answer at once."""

import argparse
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError, NoRoomError, NotCopiedError
from hunyuan_train.config.load import (
    DEMO,
    CommandLine,
    describe_long_path,
    load_command_line,
)
from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.interrupts import ending_at_ctrl_c
from hunyuan_train.launcher.exit_codes import (
    FAILURE,
    INTERRUPTED,
    NO_ROOM,
    NOT_COPIED,
    SUCCESS,
    USER_ERROR,
)
from hunyuan_train.launcher.rank.heartbeat import announce_rank, is_worker
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.shipped import VERSION
from hunyuan_train.terminal import PlainParser, say
from hunyuan_train.trainer.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Listed:
    """A command in the list of all."""

    help: str
    added_by: str = ""  # MODULE:FUNCTION of what adds its arguments; empty: it reads its own flags


CHECKPOINTS = "hunyuan_train.export.commands:add_checkpoint_commands"
COMMANDS = {
    "train": Listed("fine-tune a model (train --help lists the settings)"),
    "plan": Listed("estimate what a run needs, and find what fits"),
    "rehearse": Listed("run the engine at full model size on simulated GPUs"),
    "doctor": Listed("check the hosts of a run before it starts"),
    "data": Listed(
        "check, convert, show and measure dialogues",
        "hunyuan_train.data.commands:add_data_commands",
    ),
    "export": Listed("write a checkpoint as a model folder", CHECKPOINTS),
    "merge": Listed("merge an adapter into its base model", CHECKPOINTS),
    "convert_adapter": Listed("write an adapter in the layout that a server reads", CHECKPOINTS),
    "verify": Listed("check every byte of a checkpoint", CHECKPOINTS),
    "quantize": Listed(
        "write a model in FP8 or 4 bits, and measure the loss of quality",
        "hunyuan_train.quantize.commands:add_quantize_command",
    ),
    "selftest": Listed(
        "compare every parallel case with one plain process",
        "hunyuan_train.selftest.commands:add_selftest_command",
    ),
    "chat": Listed(
        "talk to an exported model or adapter", "hunyuan_train.serve.commands:add_chat_command"
    ),
    "evaluate": Listed(
        "score what a model on disk answers", "hunyuan_train.serve.evaluate:add_evaluate_command"
    ),
    "serve": Listed(
        "serve a model or adapter with vLLM, SGLang or llama.cpp, or check a server",
        "hunyuan_train.serve.start:add_serve_command",
    ),
    "watch": Listed(
        "a live page about runs, during and after training",
        "hunyuan_train.report.watch:add_watch_command",
    ),
    "report": Listed(
        "write one HTML page about a run, or several",
        "hunyuan_train.report.commands:add_report_command",
    ),
    "download": Listed(
        "get a model or a data set by its name", "hunyuan_train.hub.commands:add_download_command"
    ),
    "push": Listed(
        "publish a model or adapter on Hugging Face", "hunyuan_train.report.push:add_push_command"
    ),
    "verify-resume": Listed(
        "train, kill, resume, and prove that nothing differs",
        "hunyuan_train.verify_resume:add_verify_resume",
    ),
    "schema": Listed(
        "print a JSON schema of the YAML, for editors",
        "hunyuan_train.config.commands:add_schema_command",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    A mistake of the user's, and a training that cannot go on, end as one paragraph; Ctrl-C without
    a word.
    """
    try:
        return run_command(arguments)
    except NoRoomError as error:
        return fail(str(error), NO_ROOM)
    except NotCopiedError as error:
        return fail(str(error), NOT_COPIED)
    except (ConfigError, DataError, CheckpointError, ServeError) as error:
        return fail(str(error), USER_ERROR)
    except TrainingError as error:
        return fail(str(error), FAILURE)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or error.filename is None:
            raise
        path = describe_long_path(os.fsdecode(error.filename))
        return fail(f"the path is {path}", USER_ERROR)
    except KeyboardInterrupt:
        # Python notes that it met Ctrl-C in code given as text (a library's, while it is imported),
        # and would end itself by the signal, whatever we return; new code as text lets it forget.
        exec("")
        return INTERRUPTED


def fail(reason: str, exit_code: int) -> int:
    """Say in one paragraph why a command ends, to the launcher where it is a rank."""
    from hunyuan_train.launcher.rank.worker import report_failure

    report_failure(f"error: {reason}")
    return exit_code


def run_command(arguments: Sequence[str]) -> int:
    """Hand the arguments to the command that the first one names."""
    if arguments and arguments[0] == "train":
        return train(arguments[1:])
    if arguments and arguments[0] == "plan":
        with ending_at_ctrl_c():
            from hunyuan_train.planner.command import run_plan

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
    """Lists every command, and knows the arguments of the one that is asked for."""
    parser: argparse.ArgumentParser = PlainParser(
        prog="hunyuan-train", description="Fine-tune Hunyuan models, and what goes with it."
    )
    parser.add_argument("--version", action="version", version=f"hunyuan-train {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = COMMANDS.get(arguments[0] if arguments else "")
    for name, command in COMMANDS.items():
        if asked is None or not asked.added_by or command.added_by != asked.added_by:
            commands.add_parser(name, help=command.help)
    if asked is not None and asked.added_by:
        add_arguments(commands, asked.added_by)
    return parser


def add_arguments(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", added_by: str
) -> None:
    """Add a command, and those of the same module, with their arguments."""
    module, _, function = added_by.partition(":")
    with ending_at_ctrl_c():
        add = getattr(importlib.import_module(module), function)
    if added_by == COMMANDS["data"].added_by:
        commands = commands.add_parser("data").add_subparsers(metavar="COMMAND", required=True)
    add(commands, **lend_functions(added_by))


def lend_functions(added_by: str) -> dict[str, Any]:
    """What a command needs of layers that its own may not import."""
    if added_by == CHECKPOINTS:
        from hunyuan_train.quantize.commands import merge_into_quantised

        return {"merge_into_quantised": merge_into_quantised}
    if added_by == COMMANDS["serve"].added_by:
        from hunyuan_train.launcher.machine import detect_machine

        return {"detect_machine": detect_machine}
    return {}


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
        from hunyuan_train.config.describe import describe_settings

        print(describe_settings())  # noqa: T201 the answer itself, for a pager or grep
        return SUCCESS
    command, arguments = load_or_demonstrate(arguments)
    if command.recipe is not None:
        say(command.recipe.rstrip())
        return SUCCESS
    if is_worker():
        return train_as_rank(command)
    with ending_at_ctrl_c():
        from hunyuan_train.launcher.start.launch import start_run

    return start_run(command, arguments)


def train_as_rank(command: CommandLine) -> int:
    """Run, as one of the ranks that torchrun started."""
    from hunyuan_train.launcher.machine import detect_machine
    from hunyuan_train.launcher.rank.worker import (
        check_place,
        mark_done,
        report_crash,
        started_slots,
        take_environment,
    )
    from hunyuan_train.launcher.start.inputs_by_name import locate_downloads
    from hunyuan_train.launcher.start.resolve_here import resolve_here

    sys.excepthook = report_crash
    take_environment()
    check_place()
    heartbeat = announce_rank()
    slots = started_slots(command.config)
    config = locate_downloads(command.config)
    resolved = resolve_here(config, machine=detect_machine(), slots=slots)
    gc.disable()
    from hunyuan_train.run import run  # torch and DeepSpeed: only once nothing is known to be wrong

    gc.freeze()  # a million objects that stay: they are not searched for garbage, now or later
    gc.enable()
    exit_code = SUCCESS if command.is_dry_run else run(resolved, heartbeat)
    if exit_code == SUCCESS:
        mark_done()
    return exit_code
