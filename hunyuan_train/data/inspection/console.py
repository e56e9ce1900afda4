"""Findings and numbers as text for a terminal."""

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hunyuan_train.data.findings import POLICIES, Finding, FindingLog, list_fields
from hunyuan_train.data.inspection.stats import DataStats, TokenStats
from hunyuan_train.plain_text import count_of

_ACTION_STYLES = {"error": "bold red", "drop": "yellow", "fix": "green", "note": "dim"}
_ACTION_WORDS = {"error": "error", "drop": "left out", "fix": "fixed", "note": "noted"}
_MAX_NOTES = 3  # of each kind: enough to find one; what changes or refuses something comes first
_SPARK = " ▁▂▃▄▅▆▇█"


def print_findings(console: Console, log: FindingLog) -> None:
    """The first findings of each kind, how many more there are, then a count of all."""
    shown: Counter[tuple[str, str]] = Counter()
    for finding in log.examples:
        key = (finding.kind, finding.action)
        if finding.action != "note" or shown[key] < _MAX_NOTES:
            console.print(_write_finding(finding), soft_wrap=True)
            shown[key] += 1
    if not log.counts:
        return
    more = {key: number - shown[key] for key, number in log.counts.items() if number > shown[key]}
    if more:
        listed = ", ".join(
            f"{number:,} {_ACTION_WORDS[action]} [{kind}]"
            for (kind, action), number in sorted(more.items(), key=_by_severity)
        )
        console.print(
            Text(f"and more: {listed}; `hunyuan-train data check --json` lists every one"),
            soft_wrap=True,
        )
    table = Table("kind", "", "times", "what it is", box=None, pad_edge=False)
    for (kind, action), number in sorted(log.counts.items(), key=_by_severity):
        word = Text(_ACTION_WORDS[action], _ACTION_STYLES[action])
        meaning = POLICIES[kind].meaning
        if fields := list_fields(log.fields[kind, action]):
            meaning = f"{meaning}: {fields}"
        table.add_row(kind, word, f"{number:,}", Text(meaning))
    console.print(table)


def _by_severity(item: tuple[tuple[str, str], int]) -> tuple[int, int]:
    (_, action), number = item
    return list(_ACTION_STYLES).index(action), -number


def _write_finding(finding: Finding) -> Text:
    text = Text(f"{finding.path}:{finding.line}: ", "bold")
    text.append(f"{_ACTION_WORDS[finding.action]} ", _ACTION_STYLES[finding.action])
    text.append(f"[{finding.kind}] ", "dim")
    text.append(f"{finding.field}: " if finding.field else "")
    text.append(f"{finding.reason}; ")
    text.append(finding.fix, "italic")
    return text


def print_stats(console: Console, stats: DataStats) -> None:
    """The numbers of some files."""
    table = Table(box=None, pad_edge=False, show_header=False)
    refused = f", {stats.num_refused:,} of them refused" if stats.num_refused else ""
    table.add_row("records", f"{stats.num_records:,}{refused}")
    if stats.num_used:
        table.add_row("form", _write_shares(stats.forms))
        table.add_row("mode", _write_shares(stats.modes))
        table.add_row("script", _write_shares(stats.scripts))
        if stats.turns:
            table.add_row("answers per dialogue", _write_shares(stats.turns))
    if stats.tokens:
        _add_tokens(table, stats.tokens)
    console.print(table)
    for advice in stats.advice:
        console.print(Text.assemble(("note ", "yellow"), advice), soft_wrap=True)


def _add_tokens(table: Table, tokens: TokenStats) -> None:
    samples = f"{tokens.num_samples:,}, {tokens.num_tokens:,} tokens"
    table.add_row("samples", f"{samples}, {tokens.growth:.2f} times one sample per dialogue")
    shown = {span: share for span, share in tokens.label_share_by_span.items() if share}
    shares = "  ".join(f"{span} {share:.1%}" for span, share in shown.items())
    table.add_row("tokens with loss", f"{tokens.num_label_tokens:,}: {shares}")
    values = "  ".join(f"{name} {value:,}" for name, value in tokens.percentiles.items())
    table.add_row("tokens per sample", f"{values}  longest {tokens.longest:,}")
    most = max(number for _, number in tokens.bins)
    bars = "".join(_SPARK[-(-number * 8 // most)] for _, number in tokens.bins)
    table.add_row("", f"up to {tokens.bins[0][0]:,} {bars} {tokens.bins[-1][0]:,}")
    rows = (
        f"{count_of(tokens.num_rows, 'row')} of {tokens.max_seq_length:,}, {tokens.fill:.2%} full"
    )
    table.add_row("packed", rows)
    if tokens.num_overlong:
        table.add_row("too long", f"{tokens.num_overlong:,} samples, in no row")


def _write_shares(numbers: Mapping[str, int] | Mapping[int, int]) -> str:
    total = sum(numbers.values())
    most = sorted(numbers.items(), key=lambda item: -item[1])[:8]
    return "  ".join(f"{name} {number / total:.1%}" for name, number in most)
