"""Puts the page together: one HTML file with styles, scripts and, where it is frozen, the data.

Nothing is fetched from anywhere but the server that gave the page, and nothing at all by a frozen
one; the policy in its head holds the browser to that. Scripts write text of others as text, never
as HTML.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from hunyuan_train.report.content import (
    describe_answers,
    describe_charts,
    describe_curves,
    describe_experts,
    describe_rest,
    describe_run,
)
from hunyuan_train.report.record import RunRecord

WEB = Path(__file__).with_name("web")
STYLES = ("uPlot.min.css", "page.css")
# In the order in which they need each other; plain scripts, which a browser reads as they are.
SCRIPTS = (
    *("uPlot.iife.min.js", "words.js", "elements.js", "source.js", "series.js", "chart.js"),
    *("charts.js", "experts.js", "answers.js", "sections.js", "page.js"),
)
FROZEN_BUCKETS = 1000  # of each curve: what a wide screen shows
MAX_FROZEN_LOG_LINES = 100


@cache
def read_web_file(name: str) -> str:
    """A file of the page."""
    return (WEB / name).read_text(encoding="utf-8")


def write_page(title: str, data: Mapping[str, Any], *, summary: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        title: of the window.
        data: where its numbers come from: `{"mode": "live"}`, or all of them.
        summary: what is said to a reader without scripts.
    """
    scripts = [read_web_file(name) for name in SCRIPTS]
    styles = [read_web_file(name) for name in STYLES]
    # A script element ends at the first "</", wherever that stands.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").encode("utf-8", "replace").decode()
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; script-src {_list_hashes(scripts)}; style-src {_list_hashes(styles)}"
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        *(f"<style>{style}</style>" for style in styles),
    ]
    without_scripts = "".join(f"<p>{escape(line)}</p>" for line in summary)
    body = [
        f"<noscript><p>The curves of this page need scripts.</p>{without_scripts}</noscript>",
        '<div id="page"></div>',
        f'<script type="application/json" id="data">{text}</script>',
        *(f"<script>{script}</script>" for script in scripts),
    ]
    lines = ['<!doctype html>\n<html lang="en"><head>', *head, "</head><body>", *body]
    return "\n".join(lines) + "\n</body></html>\n"


def _list_hashes(texts: Sequence[str]) -> str:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def write_report(runs: Sequence[RunRecord], now: float) -> str:
    """The page about one run or several, frozen as they are at a moment.

    Args:
        now: seconds since 1970.
    """
    keys = name_runs(runs)
    overview = describe_overview(keys, now)
    data = {
        "mode": "frozen",
        "overview": overview,
        "curves": {key: describe_curves(run, most=FROZEN_BUCKETS) for key, run in keys.items()},
        "experts": {key: describe_experts(run) for key, run in keys.items()},
        "answers": {key: describe_answers(run) for key, run in keys.items()},
        "rest": {key: describe_rest(run) for key, run in keys.items()},
        "log": {key: run.log.tail()[-MAX_FROZEN_LOG_LINES:] for key, run in keys.items()},
    }
    summary = [
        f"{run['name']}: {finding['about']}: {finding['text']}"
        for run in overview["runs"]
        for finding in run["verdict"]
    ]
    title = " and ".join(run.name for run in runs)
    return write_page(f"Run {title}", data, summary=summary)


def name_runs(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Runs by a key each; runs of one name get as much of their path as tells them apart."""
    keys: dict[str, RunRecord] = {}
    for run in runs:
        parts = run.folder.resolve().parts
        key, depth = parts[-1], 1
        while key in keys and depth < len(parts):
            depth += 1
            key = "/".join(parts[-depth:])
        keys.setdefault(key, run)
    return keys


def describe_overview(keys: Mapping[str, RunRecord], now: float) -> dict[str, Any]:
    """The state of all runs of a page."""
    return {
        "now": now,
        "runs": [describe_run(run, key, now) for key, run in keys.items()],
        "charts": describe_charts(list(keys.values())),
    }
