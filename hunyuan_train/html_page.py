"""The look of our HTML pages: one file, nothing beside it, readable on a phone, light and dark."""

from collections.abc import Mapping, Sequence
from html import escape

# Bars are boxes and no drawing: text keeps its size, and lines break, on a screen of any width.
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 720px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.4em; overflow-wrap: anywhere } h2 { font-size: 1.1em }
table { border-collapse: collapse } td, th { padding: .1em 1em .1em 0; vertical-align: top;
       text-align: left; overflow-wrap: anywhere }
.bars { display: grid; grid-template-columns: fit-content(45%) 1fr max-content; gap: .1em .7em;
        align-items: center; overflow-wrap: anywhere }
.bar { background: #4a7ebb; height: .9em; min-width: 1px } .beyond { background: #c2473d }
.advice { border-left: 4px solid #d9a400; padding-left: .8em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } }
"""


def write_document(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """A whole page.

    Args:
        title: shown on top.
        parts: of the body, HTML.
        style: rules beside the common ones.
    """
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n<body>\n{body}\n</body></html>\n"
    )


def write_advice(text: str) -> str:
    """A remark that stands out."""
    return f'<p class="advice">{escape(text)}</p>'


def write_table(rows: Mapping[str, Sequence[str]], *, heads: Sequence[str] = ()) -> str:
    """A name and its values a row, under column heads if there are several columns."""
    lines = ["".join(f"<th>{escape(text)}</th>" for text in ("", *heads))] if heads else []
    for name, values in rows.items():
        lines.append("".join(f"<td>{escape(text)}</td>" for text in (name, *values)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
