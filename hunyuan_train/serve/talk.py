"""A chat once its model is known to be one: one answer for a script, or a talk in a terminal."""

import argparse
import json
import readline  # noqa: F401  gives input() line editing and a history
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from hunyuan_train.families.grammar.dialogue import TIME_FORMAT
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.serve.chat import Dialogue, Reply, TerminalView
from hunyuan_train.serve.commands import HELP, SWITCH_MODE
from hunyuan_train.serve.generate import Sampling, load_model
from hunyuan_train.terminal import PlainConsole

Arguments = argparse.Namespace


def answer_or_talk(arguments: Arguments, tools: list[dict[str, Any]]) -> int:
    """Answer one prompt, or talk until Ctrl-D.

    Args:
        arguments: of the command.
        tools: on offer, in OpenAI's form.
    """
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


def _open_dialogue(arguments: Arguments, tools: list[dict[str, Any]]) -> Dialogue:
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


def _print_reply(reply: Reply, arguments: Arguments, screen: Console) -> None:
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


def _remark(reply: Reply, screen: Console) -> None:
    """Say why an answer is not what it should be."""
    if reply.finish_reason == "length":
        screen.print("the answer was cut off: raise --max_new_tokens", style="yellow")
    elif not reply.parsed.is_well_formed and reply.finish_reason != "interrupted":
        text = "this answer does not follow the think/answer grammar; a server would return it so"
        screen.print(text, style="yellow")


def talk(dialogue: Dialogue, arguments: Arguments, console: Console) -> None:
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
    dialogue: Dialogue, question: str, console: Console, arguments: Arguments, *, is_fast: bool
) -> str | None:
    """One question and, where the model calls tools, the results that the user types."""

    def put_question(show: Callable[..., None]) -> Reply:
        return dialogue.ask(question, is_fast=is_fast, show=show)

    reply = _show_answer(put_question, console, arguments)
    while reply.is_kept and reply.parsed.tool_calls:
        results = []
        for call in reply.parsed.tool_calls:
            console.print(Text(f"calls {call.name}({call.arguments})", style="cyan"))
            results.append(_read_line(console, f"{call.name} returns> ") or "")

        def put_results(show: Callable[..., None], results: list[str] = results) -> Reply:
            return dialogue.give_results(results, show=show)

        reply = _show_answer(put_results, console, arguments)
    return reply.parsed.reasoning_content


def _show_answer(
    put: Callable[[Callable[..., None]], Reply], console: Console, arguments: Arguments
) -> Reply:
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
