"""`hunyuan-train chat`: ask an exported model or adapter, in a terminal or a script."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from hunyuan_train.deferred import Deferred
from hunyuan_train.log import log_to_screen
from hunyuan_train.serve.by_name import add_model_arguments, check_model, place_model
from hunyuan_train.serve.errors import ServeError

Arguments = argparse.Namespace

SWITCH_MODE = "/no_think"  # a command of this chat, whatever the grammar writes into queries
HELP = """\
  /no_think   switch between fast mode (no thinking) and slow mode
  /think      show the thoughts of the last answer
  /new        forget the dialogue
  Ctrl-C      end an answer; one that ends in its thoughts is dropped, with its question
  Ctrl-D      leave
"""


def add_chat_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    chat = subparsers.add_parser(
        "chat",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.description = (
        "Talk to a model through plain Transformers, with the prompts that it was trained on.\n"
        "In a terminal:\n" + HELP
    )
    add_model_arguments(chat)
    chat.add_argument(
        "--prompt", metavar="TEXT", help="answer this and exit (-: read it from stdin)"
    )
    chat.add_argument(
        "--json", action="store_true", help="with --prompt: print the message as JSON"
    )
    chat.add_argument("--no_think", action="store_true", help="start in fast mode")
    chat.add_argument("--show_thinking", action="store_true", help="show thoughts in full")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument(
        "--tools", type=Path, metavar="FILE", help="JSON list of tools, OpenAI's form"
    )
    chat.add_argument("--max_new_tokens", type=int, default=4096, help="default: %(default)s")
    chat.add_argument("--temperature", type=float, help="0 is greedy (default: the model's own)")
    chat.add_argument("--top_p", type=float, help="default: the model's own")
    chat.add_argument("--top_k", type=int, help="default: the model's own")
    chat.add_argument("--seed", type=int, help="makes sampled answers repeatable")
    chat.set_defaults(run=run_chat)


def run_chat(arguments: Arguments) -> Deferred:
    """Check what is asked of which model."""
    if arguments.json and arguments.prompt is None:
        raise ServeError("--json prints one answer; give its question with --prompt")
    _check_sampling(arguments)
    tools = _read_tools(arguments.tools)
    place_model(arguments)
    check_model(arguments)
    log_to_screen()  # and so keep Python's warnings off it
    return Deferred("chat", {"arguments": arguments, "tools": tools})


def _check_sampling(arguments: Arguments) -> None:
    if arguments.max_new_tokens < 1:
        raise ServeError(f"max_new_tokens is {arguments.max_new_tokens}; set it to 1 or more")
    bounds = {"temperature": (0, math.inf), "top_p": (0, 1), "top_k": (0, math.inf)}
    for name, (low, high) in bounds.items():
        value = vars(arguments)[name]
        if value is not None and not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"a number from {low} to {high}"
            raise ServeError(f"{name} is {value}; set it to {allowed}")


def _read_tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ServeError(f"tools is {path}, which cannot be read as JSON ({error})") from error
    if not isinstance(tools, list):
        raise ServeError(f"tools is {path}, which holds no list; give [{{...}}] in OpenAI's form")
    return tools
