"""The numbers of a data set as one HTML page that needs nothing beside itself."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise

from hunyuan_train.data.inspection.stats import DataStats, TokenStats
from hunyuan_train.html_page import write_advice, write_document, write_table
from hunyuan_train.plain_text import count_of


def write_page(stats: DataStats, title: str) -> str:
    """A page with tables and plots."""
    parts = [write_advice(advice) for advice in stats.advice]
    records = {"records": f"{stats.num_records:,}", "refused": f"{stats.num_refused:,}"}
    table = records | _token_table(stats.tokens)
    parts.append(write_table({name: [value] for name, value in table.items()}))
    if stats.tokens:
        parts += ["<h2>Tokens per sample</h2>", _length_bars(stats.tokens)]
        parts += ["<h2>How full the packed rows are</h2>", _row_bars(stats.tokens)]
    for heading, numbers in _plots(stats).items():
        parts += [f"<h2>{heading}</h2>", _bars(numbers)] if numbers else []
    for action, kinds in stats.findings.items():
        parts += [f"<h2>Findings: {action}</h2>", _bars(kinds)]
    return write_document(title, parts)


def _plots(stats: DataStats) -> dict[str, Mapping[str, int]]:
    return {
        "Thinking mode": stats.modes,
        "Answers per dialogue": {str(turns): number for turns, number in stats.turns.items()},
        "Form": stats.forms,
        "Script of the last answer": stats.scripts,
    }


def _token_table(tokens: TokenStats | None) -> dict[str, str]:
    if tokens is None:
        return {}
    shown = {span: share for span, share in tokens.label_share_by_span.items() if share}
    shares = ", ".join(f"{span} {share:.1%}" for span, share in shown.items())
    values = ", ".join(f"{name} {value:,}" for name, value in tokens.percentiles.items())
    num_rows = count_of(tokens.num_rows, "row")
    rows = f"{num_rows} of {tokens.max_seq_length:,} tokens, {tokens.fill:.2%} full"
    return {
        "samples": f"{tokens.num_samples:,}",
        "tokens": f"{tokens.num_tokens:,} ({tokens.growth:.2f} times one sample per dialogue)",
        "tokens with loss": f"{tokens.num_label_tokens:,} ({shares})",
        "tokens per sample": f"{values}, longest {tokens.longest:,}",
        "packed": rows,
        "longer than max_seq_length": f"{tokens.num_overlong:,}",
    }


def _length_bars(tokens: TokenStats) -> str:
    """Samples by length, those in red that do not fit."""
    bars = {f"up to {end:,}": number for end, number in tokens.bins}
    first_beyond = sum(end <= tokens.max_seq_length for end, _ in tokens.bins)
    return _bars(bars, num_plain=first_beyond if tokens.num_overlong else len(bars))


def _row_bars(tokens: TokenStats) -> str:
    """Rows by how full they are."""
    starts, numbers = zip(*tokens.row_bins, strict=True)
    names = ["full", *(f"{low:.0%} to {high:.0%}" for high, low in pairwise(starts))]
    return _bars(dict(zip(names, numbers, strict=True)))


def _bars(numbers: Mapping[str, int], *, num_plain: int | None = None) -> str:
    """A horizontal bar for each number; those behind the first `num_plain` are red."""
    most, total = max(numbers.values()), sum(numbers.values())
    rows = []
    for index, (name, number) in enumerate(numbers.items()):
        kind = "bar" if num_plain is None or index < num_plain else "bar beyond"
        rows.append(
            f"<span>{escape(name)}</span>"
            f'<span class="{kind}" style="width: {100 * number / most:.1f}%"></span>'
            f"<span>{number:,} ({number / total:.1%})</span>"
        )
    return '<div class="bars">\n' + "\n".join(rows) + "\n</div>"
