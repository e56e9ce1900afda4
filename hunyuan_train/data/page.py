"""The numbers of a data set as one HTML page that needs nothing beside itself."""

from collections.abc import Mapping
from html import escape

from hunyuan_train.data.stats import DataStats, TokenStats

# Bars are boxes and no drawing: text keeps its size, and lines break, on a screen of any width.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 720px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.4em; overflow-wrap: anywhere } h2 { font-size: 1.1em }
table { border-collapse: collapse } td { padding: .1em 1em .1em 0; vertical-align: top }
.bars { display: grid; grid-template-columns: fit-content(45%) 1fr max-content; gap: .1em .7em;
        align-items: center; overflow-wrap: anywhere }
.bar { background: #4a7ebb; height: .9em; min-width: 1px } .beyond { background: #c2473d }
.advice { border-left: 4px solid #d9a400; padding-left: .8em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } }
"""


def write_page(stats: DataStats, title: str) -> str:
    """A page with tables and plots."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="advice">{escape(advice)}</p>' for advice in stats.advice]
    records = {"records": f"{stats.num_records:,}", "refused": f"{stats.num_refused:,}"}
    parts.append(_table(records | _token_table(stats.tokens)))
    if stats.tokens:
        parts += ["<h2>Tokens per sample</h2>", _length_bars(stats.tokens)]
    for heading, numbers in _plots(stats).items():
        parts += [f"<h2>{heading}</h2>", _bars(numbers)] if numbers else []
    for action, kinds in stats.findings.items():
        parts += [f"<h2>Findings: {action}</h2>", _bars(kinds)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )


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
    shares = ", ".join(f"{span} {share:.1%}" for span, share in tokens.label_share_by_span.items())
    values = ", ".join(f"{name} {value:,}" for name, value in tokens.percentiles.items())
    rows = f"{tokens.num_rows:,} rows of {tokens.max_seq_length:,} tokens, {tokens.fill:.2%} full"
    return {
        "samples": f"{tokens.num_samples:,}",
        "tokens": f"{tokens.num_tokens:,} ({tokens.growth:.2f} times one sample per dialogue)",
        "tokens with loss": f"{tokens.num_label_tokens:,} ({shares})",
        "tokens per sample": f"{values}, longest {tokens.longest:,}",
        "packed": rows,
        "longer than max_seq_length": f"{tokens.num_overlong:,}",
    }


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _length_bars(tokens: TokenStats) -> str:
    """Samples by length, those in red that do not fit."""
    bars = {f"up to {end:,}": number for end, number in tokens.bins}
    first_beyond = sum(end <= tokens.max_seq_length for end, _ in tokens.bins)
    return _bars(bars, num_plain=first_beyond if tokens.num_overlong else len(bars))


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
