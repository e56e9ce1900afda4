"""The verdicts as a table, and what to do about those that are not good."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.doctor.checks import Finding

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
ORDER = tuple(STYLES)  # from good to bad


def show_table(hosts: Sequence[Host], findings: Sequence[Finding], console: Console) -> None:
    """A row per check and a column per host."""
    table = Table("check", *(host.address for host in hosts), box=None, pad_edge=False)
    for check in dict.fromkeys(finding.check for finding in findings):
        cells = [worst(findings, check, host) for host in hosts]
        table.add_row(check, *(Text(cell, STYLES.get(cell, "dim")) for cell in cells))
    console.print(table)


def worst(findings: Sequence[Finding], check: str, host: Host) -> str:
    """The worst verdict of a check on a host; a dash where the host did not get that far."""
    verdicts = [one.verdict for one in findings if one.check == check and one.host == host]
    return max(verdicts, key=ORDER.index, default="-")


def describe(findings: Sequence[Finding]) -> str:
    """Each finding that is not good: the host, what was found and wanted, what fixes it."""
    lines = []
    for finding in findings:
        if finding.verdict != "ok":
            lines.append(
                f"{finding.verdict}: host {finding.host.address}: {finding.check}: {facts(finding)}"
            )
            if finding.remedy:
                lines.append(f"    fix: {finding.remedy}")
    return "\n".join(lines)


def facts(finding: Finding) -> str:
    """What was found, and what is wanted."""
    found = finding.found or "not so"
    return f"{found}; wanted: {finding.wanted}" if finding.wanted else found
