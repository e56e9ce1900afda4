"""The commands. Each is imported when it is asked for, so that all of them answer at once."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError, NoRoomError, NotCopiedError
from hunyuan_train.config.describe import describe_settings
from hunyuan_train.config.load import (
    DEMO,
    CommandLine,
    describe_long_path,
    load_command_line,
)
from hunyuan_train.deferred import Deferred
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
from hunyuan_train.launcher.rank.heartbeat import is_worker
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.shipped import VERSION
from hunyuan_train.terminal import PlainConsole, PlainParser, say
from hunyuan_train.trainer.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Listed:
    """A command in the list of all. Functions are written MODULE:FUNCTION, below our package."""

    help: str
    added_by: str = ""  # what adds its arguments to a parser
    run_by: str = ""  # what runs it with its words, if it reads its own flags
    lent: Mapping[str, str] = field(default_factory=dict)  # of layers that its own may not import


CHECKPOINTS = "export.commands:add_checkpoint_commands"
COMMANDS = {
    "train": Listed("fine-tune a model (train --help lists the settings)"),
    "plan": Listed(
        "estimate what a run needs, and find what fits", run_by="planner.command:run_plan"
    ),
    "rehearse": Listed(
        "run the engine at full model size on simulated GPUs",
        run_by="rehearsal.commands:run_rehearse",
    ),
    "doctor": Listed(
        "check the hosts of a run before it starts", run_by="launcher.doctor.commands:run_doctor"
    ),
    "data": Listed(
        "check, convert, show and measure dialogues",
        "data.commands:add_data_commands",
    ),
    "export": Listed("write a checkpoint as a model folder", CHECKPOINTS),
    "merge": Listed("merge an adapter into its base model", CHECKPOINTS),
    "convert_adapter": Listed("write an adapter in the layout that a server reads", CHECKPOINTS),
    "verify": Listed("check every byte of a checkpoint", CHECKPOINTS),
    "quantize": Listed(
        "write a model in FP8 or 4 bits, and measure the loss of quality",
        "quantize.commands:add_quantize_command",
    ),
    "selftest": Listed(
        "compare every parallel case with one plain process",
        "selftest.commands:add_selftest_command",
    ),
    "chat": Listed("talk to an exported model or adapter", "serve.commands:add_chat_command"),
    "evaluate": Listed("score what a model on disk answers", "serve.evaluate:add_evaluate_command"),
    "serve": Listed(
        "serve a model or adapter with vLLM, SGLang or llama.cpp, or check a server",
        "serve.start:add_serve_command",
        lent={"detect_machine": "launcher.machine:detect_machine"},
    ),
    "watch": Listed(
        "a live page about runs, during and after training",
        "report.watch:add_watch_command",
    ),
    "report": Listed(
        "write one HTML page about a run, or several",
        "report.commands:add_report_command",
    ),
    "download": Listed(
        "get a model or a data set by its name", "hub.commands:add_download_command"
    ),
    "push": Listed("publish a model or adapter on Hugging Face", "report.push:add_push_command"),
    "verify-resume": Listed(
        "train, kill, resume, and prove that nothing differs",
        "verify_resume:add_verify_resume",
    ),
    "schema": Listed(
        "print a JSON schema of the YAML, for editors",
        "config.commands:add_schema_command",
    ),
}
# What `train` does: start ranks, or be one.
LAUNCHER, RANK = "launcher.start.launch:start_run", "rank_process:run_rank"
# What other commands leave until nothing is known to be wrong: importing torch takes seconds.
DEFERRED = {
    "export": "export.with_torch:export",
    "merge": "export.with_torch:merge",
    "merge_quantised": "quantize.merge_command:merge_and_measure",
    "convert_adapter": "export.adapter_layouts:convert_adapter",
    "quantize": "quantize.run:quantize_and_show",
    "selftest": "selftest.run:check_and_show",
    "chat": "serve.talk:answer_or_talk",
    "evaluate": "serve.score:score_and_show",
    "check a server": "serve.check.command:check_and_show",
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
    asked = COMMANDS.get(arguments[0]) if arguments else None
    if asked is COMMANDS["train"]:
        return train(arguments[1:])
    if asked is not None and asked.run_by:
        with ending_at_ctrl_c():
            run = import_function(asked.run_by)
        return int(run(arguments[1:]))
    parser = build_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        return USER_ERROR
    parsed = parser.parse_args(arguments)
    answer: int | Deferred = parsed.run(parsed)
    return finish(answer) if isinstance(answer, Deferred) else answer


def import_function(written: str) -> Callable[..., Any]:
    """The function of a row above; nowhere else are modules imported by their names."""
    module, _, name = written.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"hunyuan_train.{module}"), name)
    return function


def finish(rest: Deferred) -> int:
    """Do what a command has left; it takes seconds to import."""
    # DeepSpeed's log goes to what is stdout at its import, which is for the command's answer.
    with PlainConsole(stderr=True).status("loading torch"), redirect_stdout(sys.stderr):
        function = import_function(DEFERRED[rest.name])
    exit_code: int | None = function(**rest.given)
    return SUCCESS if exit_code is None else exit_code


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
        add_arguments(commands, asked)
    return parser


def add_arguments(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", asked: Listed
) -> None:
    """Add a command, and those of the same module, with their arguments."""
    with ending_at_ctrl_c():
        add = import_function(asked.added_by)
        lent = {name: import_function(one) for name, one in asked.lent.items()}
    if asked is COMMANDS["data"]:
        commands = commands.add_parser("data").add_subparsers(metavar="COMMAND", required=True)
    add(commands, **lent)


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
    if is_worker():
        return int(import_function(RANK)(command))
    with ending_at_ctrl_c():
        start = import_function(LAUNCHER)
    return int(start(command, arguments))
