"""Write docs/capabilities.md from real runs: what each client does with each thing that we write.

    python -m tests.clients.capabilities --work FOLDER [--only CLIENT ...] [--artefacts NAME ...]
    python -m tests.clients.capabilities --page

A small model is taught three dialogues, quantised, merged and given adapters. Every client that can
be had here gets every artefact, and what it computes is compared with float32 in Transformers. A
cell says what was compared. Where a client refuses, it says why; where it cannot be run here, it
names the command that failed.

Outcomes are kept in capabilities.json, one for each cell, so that a cell can be run again for
itself; the page is written from them. All cells take half an hour on an idle machine.
"""

import argparse
import json
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from hunyuan_train.terminal import say
from hunyuan_train.whole_file import open_whole
from tests.clients.artefacts import ARTEFACTS, Work
from tests.clients.outcomes import CLIENTS, find_outcome

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
KEPT = Path(__file__).with_suffix(".json")
KINDS = {
    "works": "the client computed what was compared",
    "refused": "the pair makes no sense or is known not to work, and the cell says who refuses it",
    "not testable here": "the command in the cell failed, because a GPU or a package is missing",
    "fails": "a fault of ours, or of the client's",
}
HEAD = """\
# What loads what

`python -m tests.clients.capabilities` wrote this page from runs on machines without a GPU. The
model is small: 2 layers, 8 experts, heads of 128. Servers were tested with a model that has the
vendor's vocabulary. The model of Hy3 has a dense layer before these, an MTP layer, the real
markers, and a small vocabulary. Greedy tokens are compared with those of the unquantised model in
float32, so those of quantised models may differ. On a CPU vLLM takes adapters of models without
experts only. It served the adapter on attention of such a model. [Serving](serving.md) says what
the servers' parsers do with streamed answers.

"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The outcome of a cell."""

    artefact: str
    client: str
    kind: str
    text: str
    date: str
    seconds: int  # that it took


def main() -> None:
    """Run the cells that are asked for, keep each at once, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="*", choices=CLIENTS, default=list(CLIENTS), help="clients to ask")
    add("--artefacts", nargs="*", choices=ARTEFACTS, default=ARTEFACTS, help="to ask them about")
    add("--work", type=Path, help="keep the artefacts here, for another time")
    add("--page", action="store_true", help="only write the page again, from what is kept")
    arguments = parser.parse_args()
    if not arguments.page:
        run_cells(arguments)
    PAGE.write_text(make_page(read_kept()), encoding="utf-8")
    say(f"wrote {PAGE}")


def run_cells(arguments: argparse.Namespace) -> None:
    """Ask each client about each artefact."""
    torch.set_num_threads(1)
    work = Work(arguments.work or Path(tempfile.mkdtemp(prefix="capabilities")))
    places = [(one, client) for client in arguments.only for one in arguments.artefacts]
    for number, (artefact, client) in enumerate(places, start=1):
        say(f"{number}/{len(places)}: {artefact} in {client} ...")
        began = time.monotonic()
        outcome = find_outcome(work, artefact, client)
        seconds = round(time.monotonic() - began)
        keep(
            Kept(
                artefact=artefact,
                client=client,
                kind=outcome.kind,
                text=outcome.text,
                date=f"{datetime.now(UTC):%Y-%m-%d}",
                seconds=seconds,
            )
        )
        say(f"  {outcome.kind} ({seconds} s): {outcome.text}")


def read_kept() -> dict[tuple[str, str], Kept]:
    """Outcomes of all runs, by artefact and client."""
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    return {(row["artefact"], row["client"]): Kept(**row) for row in rows}


def keep(outcome: Kept) -> None:
    """Put an outcome in the place of the one before it."""
    found = read_kept() | {(outcome.artefact, outcome.client): outcome}
    rows = [
        asdict(found[artefact, client])
        for artefact in ARTEFACTS
        for client in CLIENTS
        if (artefact, client) in found
    ]
    with open_whole(KEPT) as file:
        file.write((json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())


def make_page(kept: dict[tuple[str, str], Kept]) -> str:
    """The page, as far as the runs are."""
    lines = [f"| | {' | '.join(CLIENTS)} |", f"|---|{'---|' * len(CLIENTS)}"]
    for artefact in ARTEFACTS:
        kinds = [kept[artefact, one].kind if (artefact, one) in kept else "" for one in CLIENTS]
        lines.append(f"| {artefact} | {' | '.join(kinds)} |")
    lines += ["", *(f"- {kind}: {text}." for kind, text in KINDS.items()), ""]
    for artefact in ARTEFACTS:
        lines += [f"## {artefact}", "", "| client | outcome | seen |", "|---|---|---|"]
        for client in CLIENTS:
            one = kept.get((artefact, client))
            cells = (f"**{one.kind}**: {in_lines(one.text)}", one.date) if one else ("not run", "")
            lines.append(f"| {client} | {' | '.join(cells)} |")
        lines.append("")
    return HEAD + "\n".join(lines[:-1]) + "\n"


def in_lines(text: str) -> str:
    """One finding a line; what stands in brackets stays in its line."""
    text = re.sub(r"\([^()]*\)", lambda found: found[0].replace("; ", " / "), text)
    return text.replace("; ", "<br>")


if __name__ == "__main__":
    main()
