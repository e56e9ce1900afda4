"""The numbers of a data set as one HTML page that needs nothing beside itself."""

from collections.abc import Mapping
from html import escape

from hunyuan_train.data.stats import DataStats, TokenStats

_WIDTH, _BAR_HEIGHT, _LABEL_WIDTH = 640, 18, 130
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 720px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse } td { padding: .1em 1em .1em 0; vertical-align: top }
svg { display: block } svg text { font-size: 12px; fill: currentColor } rect { fill: #4a7ebb }
.advice { border-left: 4px solid #d9a400; padding-left: .8em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } }
"""


def write_page(stats: DataStats, title: str) -> str:
    """A page with tables and plots."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="advice">{escape(advice)}</p>' for advice in stats.advice]
    records = {"records": f"{stats.num_records:,}", "refused": f"{stats.num_refused:,}"}
    parts.append(_table(records | _token_table(stats.tokens)))
    for heading, numbers in _plots(stats).items():
        parts += [f"<h2>{heading}</h2>", _bars(numbers)] if numbers else []
    for action, kinds in stats.findings.items():
        parts += [f"<h2>Findings: {action}</h2>", _bars(kinds)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )


def _plots(stats: DataStats) -> dict[str, Mapping[str, int]]:
    bins = stats.tokens.bins if stats.tokens else []
    return {
        "Tokens per sample": {f"up to {end:,}": number for end, number in bins},
        "Thinking mode": stats.modes,
        "Answers per dialogue": {str(turns): number for turns, number in stats.turns.items()},
        "Form": stats.forms,
        "Script of the last answer": stats.scripts,
    }


def _token_table(tokens: TokenStats | None) -> dict[str, str]:
    if tokens is None:
        return {}
    shares = ", ".join(f"{span} {share:.1%}" for span, share in tokens.label_share_by_span.items())
    values = ", ".join(f"{name} {value:,}" for name, value in tokens.percentiles.items())
    rows = f"{tokens.num_rows:,} rows of {tokens.max_seq_length:,} tokens, {tokens.fill:.2%} full"
    return {
        "samples": f"{tokens.num_samples:,}",
        "tokens": f"{tokens.num_tokens:,} ({tokens.growth:.2f} times one sample per dialogue)",
        "tokens with loss": f"{tokens.num_label_tokens:,} ({shares})",
        "tokens per sample": f"{values}, longest {tokens.longest:,}",
        "packed": rows,
    }


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _bars(numbers: Mapping[str, int]) -> str:
    """A horizontal bar for each number, as SVG."""
    most = max(numbers.values())
    room = _WIDTH - _LABEL_WIDTH - 90
    bars = "".join(
        _bar(index, name, number, room * number / most)
        for index, (name, number) in enumerate(numbers.items())
    )
    height = _BAR_HEIGHT * len(numbers)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img">{bars}</svg>'


def _bar(index: int, name: str, number: int, width: float) -> str:
    top = index * _BAR_HEIGHT
    baseline = top + 13
    return (
        f'<text x="{_LABEL_WIDTH - 8}" y="{baseline}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_LABEL_WIDTH}" y="{top + 2}" width="{width:.1f}" height="{_BAR_HEIGHT - 4}"/>'
        f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{baseline}">{number:,}</text>'
    )
