"""`hunyuan-train serve --check`, once its server is found: asked, judged and shown."""

import argparse

from rich.table import Table

from hunyuan_train.serve.artefact import Artefact
from hunyuan_train.serve.check.client import Server
from hunyuan_train.serve.check.judge import Finding
from hunyuan_train.serve.check.run import (
    LONG_PROMPT,
    TOLERANCES,
    CheckResult,
    CheckSettings,
    check_server,
    dump_result,
)
from hunyuan_train.terminal import PlainConsole, say


def check_and_show(arguments: argparse.Namespace, artefact: Artefact, server: Server) -> int:
    """Ask a server, print what was found, and say by the exit code whether it is right.

    Args:
        arguments: of the command.
        artefact: what the server should serve.
        server: that was found.
    """
    assert artefact.shape is not None
    screen = PlainConsole(stderr=True)
    with screen.status("asking") as status:
        room = server.context_length or artefact.shape.context_length
        room = min(room, artefact.shape.context_length) - arguments.max_new_tokens
        # Frame and question take some, and a sentence too many may be.
        longest = max(0, room - 256)
        wanted = LONG_PROMPT if arguments.long_prompt is None else arguments.long_prompt
        if wanted > longest and arguments.long_prompt is None and not arguments.questions:
            screen.print(f"server and model take {room:,} tokens: the long text has {longest:,}")
        settings = CheckSettings(
            max_new_tokens=arguments.max_new_tokens,
            num_long_tokens=min(wanted, longest),
            questions=arguments.questions,
            tolerance=arguments.tolerance or TOLERANCES.get(artefact.model_dtype, 0.1),
        )
        base = artefact.model if artefact.is_adapter else None
        result = check_server(server, artefact.path, base, settings, status.update)
    _print_result(result, arguments)
    return 0 if result.is_right else 1


def _print_result(result: CheckResult, arguments: argparse.Namespace) -> None:
    if arguments.json:
        say(dump_result(result))
        return
    console = PlainConsole()
    console.print(_make_table(result))
    for one in result.checked:
        for finding in one.findings:
            if finding.verdict == "wrong":
                console.print(f"\n{one.exchange.name}: {finding.what}")
                console.print(f"  expected  {finding.expected}")
                console.print(f"  answered  {finding.answered}")
    for cause in result.causes:
        console.print(f"\n{cause}", style="yellow")
    if result.is_right:
        say("\nThe server serves this model.")
    else:
        say(f"\nThe server does not serve this model as it is: {result.num_wrong} faults.")


def _make_table(result: CheckResult) -> Table:
    table = Table("asked", box=None, pad_edge=False)
    for head in [finding.what for finding in result.checked[0].findings]:
        table.add_column(head)
    table.add_column("answered", no_wrap=True, overflow="ellipsis")
    for one in result.checked:
        cells = [_cell(finding) for finding in one.findings]
        table.add_row(one.exchange.name, *cells, one.findings[-1].answered)
    return table


def _cell(finding: Finding) -> str:
    return {"right": "right", "wrong": "WRONG", "unknown": "not shown"}[finding.verdict]
