"""`hunyuan-train report`: one page about a run, or about several side by side."""

import argparse
import logging
import time
from pathlib import Path

from hunyuan_train.config.run_files import REPORT
from hunyuan_train.errors import ConfigError
from hunyuan_train.log import log_to_screen
from hunyuan_train.report.page import write_report
from hunyuan_train.report.record import read_run
from hunyuan_train.whole_file import open_whole

logger = logging.getLogger(__name__)


def add_report_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    report = subparsers.add_parser("report")
    report.description = (
        "Write the page of `watch` as one file that needs no server: a verdict in words, curves, "
        "experts, memory against the plan, data, settings, answers and warnings of a run, or of "
        "several side by side. This also works while the run goes on."
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the (first) RUN"
    )
    report.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Write the page."""
    log_to_screen()
    output = arguments.output or arguments.runs[0] / REPORT
    make_report(arguments.runs, output)
    logger.info("report: %s", output)
    return 0


def make_report(folders: list[Path], output: Path, *, are_complete: bool = False) -> None:
    """Write a page about the runs in some folders.

    Args:
        folders: of the runs.
        output: the page.
        are_complete: known by a run that ends, whose launcher has not seen it yet.

    Raises:
        ConfigError: one of them holds no run, or the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        run.is_complete = are_complete
    page = write_report(runs, time.time())
    try:
        with open_whole(output) as file:
            file.write(page.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {output} ({error.strerror}); make room, or say where "
            "with --output"
        ) from error
