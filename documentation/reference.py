"""The reference pages: settings, commands and metrics, as the code describes them."""

import argparse
import html
import inspect
import os
from dataclasses import Field, fields
from typing import Any
from unittest.mock import patch

from hunyuan_train.cli import COMMANDS, build_parser
from hunyuan_train.config.metric_names import METRICS, ON_SCREEN
from hunyuan_train.config.settings import COMMAND_FLAGS, SECTIONS
from hunyuan_train.config.values import describe_type
from hunyuan_train.launcher.doctor.commands import HELP as DOCTOR_HELP
from hunyuan_train.planner.command import build_parser as build_plan_parser
from hunyuan_train.rehearsal.commands import build_parser as build_rehearse_parser

WRITTEN = "<!-- Written by `python -m documentation.write`. -->\n"
WIDTH = os.terminal_size((100, 24))  # of the help texts


def write_settings() -> str:
    """The page of all settings."""
    parts = [
        f"# Settings\n\n{WRITTEN}",
        "Every setting is a flag of `hunyuan-train train` and a key of a YAML file. "
        "A switch is turned on by its bare name and off by `--no_NAME`.\n",
        "The column `default` holds for a run without a recipe. A recipe sets many of them to "
        "other values, for instance `eval_fraction`, `learning_rate`, `save_steps` and "
        "`save_total_limit`: see [recipes](../recipes.md#the-recipes), or print one with "
        "`hunyuan-train train --recipe NAME --show_recipe`.\n",
        "## Flags of the command\n\n| flag | meaning |\n|---|---|",
        *(f"| `--{name}` | {cell(text)} |" for name, text in COMMAND_FLAGS.items()),
    ]
    for name, section in SECTIONS.items():
        parts.append(f"\n## {name}\n\n{inspect.getdoc(section)}\n")
        parts.append("| setting | default | takes | meaning |\n|---|---|---|---|")
        parts += [write_setting(field) for field in fields(section)]
    return "\n".join(parts) + "\n"


def write_setting(field: Field[Any]) -> str:
    """One line of the table."""
    value = field.default
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    default = "" if value is None else f"`{shown}`"
    cells = (f"`--{field.name}`", default, describe_type(field.type), field.metadata["help"])
    return "| " + " | ".join(cell(one) for one in cells) + " |"


def cell(text: str) -> str:
    """A text that may stand in a table; what is code in it stays as it is."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [html.escape(part, quote=False).replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def write_commands() -> str:
    """The page of all commands: their help."""
    parts = [
        f"# Commands\n\n{WRITTEN}",
        "`hunyuan-train COMMAND --help` prints the same. The settings of `train` have a page of "
        "their own: [settings](settings.md).\n",
    ]
    with patch("shutil.get_terminal_size", return_value=WIDTH):
        for name, text in all_help().items():
            parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def all_help() -> dict[str, str]:
    """The help of each command, those of `data` singly."""
    texts = {
        "plan": build_plan_parser().format_help(),
        "rehearse": build_rehearse_parser().format_help(),
        "doctor": DOCTOR_HELP,
    }
    for name, command in COMMANDS.items():
        if not command.added_by:
            continue
        parser = subcommands(build_parser([name]))[name]
        inner = subcommands(parser)
        if inner:
            texts |= {f"{name} {one}": each.format_help() for one, each in inner.items()}
        else:
            texts[name] = parser.format_help()
    return texts


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands that a parser knows."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def write_glossary(name: str) -> str:
    """A table of the glossary: "screen" or "metrics"."""
    if name == "screen":
        rows = [(word, f"`{number}`", METRICS[number]) for word, number in ON_SCREEN.items()]
        lines = ["| word | number | meaning |", "|---|---|---|"]
    else:
        rows = [(f"`{number}`", meaning) for number, meaning in METRICS.items()]
        lines = ["| number | meaning |", "|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
