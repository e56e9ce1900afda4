"""`hunyuan-train chat`: ask an exported model or adapter, in a terminal or a script."""

import argparse
import json
import math
import readline  # noqa: F401  gives input() line editing and a history
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from hunyuan_train.families.grammar.dialogue import TIME_FORMAT
from hunyuan_train.log import log_to_screen
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.serve.by_name import add_model_arguments, check_model, place_model
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.terminal import PlainConsole

if TYPE_CHECKING:
    from hunyuan_train.serve.chat import Dialogue, Reply

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


def run_chat(arguments: Arguments) -> int:
    """Answer one prompt, or talk until Ctrl-D."""
    if arguments.json and arguments.prompt is None:
        raise ServeError("--json prints one answer; give its question with --prompt")
    _check_sampling(arguments)
    tools = _read_tools(arguments.tools)
    place_model(arguments)
    check_model(arguments)  # before torch is imported
    log_to_screen()  # and so keep Python's warnings off it
    screen = PlainConsole(stderr=True)
    with screen.status(f"loading {arguments.model}"):
        dialogue = _open_dialogue(arguments, tools)
    if arguments.prompt is None:
        talk(dialogue, arguments, PlainConsole(highlight=False))
        return 0
    question = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    reply = dialogue.ask(question, is_fast=arguments.no_think)
    _print_reply(reply, arguments, screen)
    return 0


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


def _open_dialogue(arguments: Arguments, tools: list[dict[str, Any]]) -> "Dialogue":
    import torch

    from hunyuan_train.serve.chat import Dialogue
    from hunyuan_train.serve.generate import Sampling, load_model

    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    served = load_model(
        arguments.model,
        base=arguments.base,
        tokenizer=arguments.tokenizer,
        as_trained=not arguments.any_base,
    )
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
    )
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    now = datetime.now().strftime(TIME_FORMAT)
    return Dialogue(served, sampling, tools=tools, now=now, messages=system)


def _print_reply(reply: "Reply", arguments: Arguments, screen: Console) -> None:
    """What a script reads on stdout; remarks go to stderr."""
    out = PlainConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if arguments.json:
        out.out(json.dumps(reply.to_json(), ensure_ascii=False))
        return
    if arguments.show_thinking and reply.parsed.reasoning_content:
        out.print(Text(reply.parsed.reasoning_content, style="dim"))
    message = reply.parsed.to_message()
    if reply.parsed.content or not message["tool_calls"]:
        out.out(reply.parsed.content or "")
    for call in message["tool_calls"]:
        out.out(json.dumps(call["function"], ensure_ascii=False))
    _remark(reply, screen)


def _remark(reply: "Reply", screen: Console) -> None:
    """Say why an answer is not what it should be."""
    if reply.finish_reason == "length":
        screen.print("the answer was cut off: raise --max_new_tokens", style="yellow")
    elif not reply.parsed.is_well_formed and reply.finish_reason != "interrupted":
        text = "this answer does not follow the think/answer grammar; a server would return it so"
        screen.print(text, style="yellow")


def talk(dialogue: "Dialogue", arguments: Arguments, console: Console) -> None:
    """Read questions and show answers until the input ends."""
    is_fast = arguments.no_think
    thoughts: str | None = None
    console.print(HELP, style="dim", end="")
    while True:
        line = _read_line(console, "fast> " if is_fast else "> ")
        if line is None:
            return
        if line == SWITCH_MODE:
            is_fast = not is_fast
        elif line == "/think":
            console.print(Text(thoughts or "there were no thoughts", style="dim"))
        elif line == "/new":
            dialogue.messages = [one for one in dialogue.messages if one["role"] == "system"]
        elif line:
            thoughts = _ask(dialogue, line, console, arguments, is_fast=is_fast)


def _ask(
    dialogue: "Dialogue", question: str, console: Console, arguments: Arguments, *, is_fast: bool
) -> str | None:
    """One question and, where the model calls tools, the results that the user types."""

    def put_question(show: Callable[..., None]) -> "Reply":
        return dialogue.ask(question, is_fast=is_fast, show=show)

    reply = _show_answer(put_question, console, arguments)
    while reply.is_kept and reply.parsed.tool_calls:
        results = []
        for call in reply.parsed.tool_calls:
            console.print(Text(f"calls {call.name}({call.arguments})", style="cyan"))
            results.append(_read_line(console, f"{call.name} returns> ") or "")

        def put_results(show: Callable[..., None], results: list[str] = results) -> "Reply":
            return dialogue.give_results(results, show=show)

        reply = _show_answer(put_results, console, arguments)
    return reply.parsed.reasoning_content


def _show_answer(
    put: Callable[[Callable[..., None]], "Reply"], console: Console, arguments: Arguments
) -> "Reply":
    from hunyuan_train.serve.chat import TerminalView

    with TerminalView(console, is_unfolded=arguments.show_thinking) as view:
        reply = put(view.show)
    _remark(reply, console)
    if not reply.is_kept:
        text = "the dialogue goes on without this question and its unfinished answer: ask again"
        console.print(text, style="yellow")
    return reply


def _read_line(console: Console, prompt: str) -> str | None:
    """The next line without blanks around it; None at the end of the input."""
    while True:
        try:
            return input(make_plain_name(prompt)).strip()
        except EOFError:
            console.print()
            return None
        except KeyboardInterrupt:
            console.print("\nCtrl-D leaves", style="dim")
