"""How verdicts are shown: a table for people, a list for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from hunyuan_train.selftest.oracle import Verdict

ALARM = "bold red"


def make_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a case, with what is out of tolerance in red."""
    table = Table(title="largest relative error against one process in float64")
    for heading in ("processes", "case", "loss", "gradients", "clip", "weights", "verdict"):
        table.add_column(heading, justify="left" if heading in ("case", "verdict") else "right")
    for verdict in verdicts:
        cells: list[str | Text] = [str(verdict.case.num_processes), verdict.case.name]
        if verdict.errors:
            errors = asdict(verdict.errors)
            cells += [_cell(errors[name], is_wrong=name in verdict.wrong) for name in errors]
        else:
            cells += [""] * 4
        table.add_row(*cells, _verdict(verdict))
    table.caption = count_verdicts(verdicts)
    return table


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """How many cases were equal, wrong and not run."""
    num_wrong = sum(bool(verdict.wrong) for verdict in verdicts)
    num_left = sum(bool(verdict.case.lack) for verdict in verdicts)
    parts = {"equal": len(verdicts) - num_wrong - num_left, "wrong": num_wrong, "not run": num_left}
    return ", ".join(f"{number} {name}" for name, number in parts.items() if number)


def _cell(error: float, *, is_wrong: bool) -> Text:
    return Text(f"{error:.1e}", style=ALARM if is_wrong else "")


def _verdict(verdict: Verdict) -> Text:
    if verdict.failure:
        return Text.assemble(("failed", ALARM), f": {last_line(verdict.failure)}")
    style = ALARM if verdict.wrong else "yellow" if verdict.case.lack else ""
    return Text(describe_verdict(verdict), style)


def describe_verdict(verdict: Verdict) -> str:
    """What came of a case, in a few words."""
    case = verdict.case
    if case.lack:
        return f"not run ({case.lack})"
    words = last_line(verdict.failure) or ", ".join(verdict.wrong)
    if words:
        return words if verdict.failure else f"wrong: {words}"
    return f"equal, without {case.left_out}" if case.left_out else "equal"


def last_line(text: str) -> str:
    """What a traceback ends with."""
    return text.rpartition("\n")[2][:120]


def as_data(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "case": verdict.case.name,
            "processes": verdict.case.num_processes,
            "errors": asdict(verdict.errors) if verdict.errors else None,
            "tolerance": asdict(verdict.case.tolerance),
            "wrong": verdict.wrong,
            "not_run": verdict.case.lack,
            "left_out": verdict.case.left_out,
            "failure": verdict.failure,
            "seconds": round(verdict.seconds, 1),
        }
        for verdict in verdicts
    ]
