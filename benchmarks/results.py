"""Where the figures of the benchmarks are kept."""

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """Let figures be kept on demand."""
    parser.add_argument("--report", action="store_true", help=f"append to {RESULTS.name}")


def show(text: str, *, is_kept: bool) -> None:
    """Print a section of figures and, where asked to, append it to the others."""
    print(text)
    if is_kept:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")
