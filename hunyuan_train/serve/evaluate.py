"""`hunyuan-train evaluate`: what a model on disk answers to held-out questions, scored.

Questions and numbers are those of `--eval_generate` and `--needle_lengths` in training, here asked
through plain Transformers: of a model before it is fine-tuned, and of what is served afterwards.
"""

import argparse
from pathlib import Path

from hunyuan_train.config.rules.evaluation import (
    check_metric_file,
    check_needles_fit,
    needle_lengths,
)
from hunyuan_train.config.run_files import METRICS
from hunyuan_train.data.findings import parse_policies
from hunyuan_train.data.reading.sources import list_sources
from hunyuan_train.deferred import Deferred
from hunyuan_train.hub.datasets import fetch_data_names
from hunyuan_train.log import log_to_screen
from hunyuan_train.serve.by_name import add_model_arguments, check_model, place_model
from hunyuan_train.serve.errors import ServeError


def add_evaluate_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    command = subparsers.add_parser("evaluate")
    command.description = (
        "Let a model answer the questions of a file, greedily, and compare its answers with the "
        "file's: format, mode, exact match, and F1 of the answers as sets of items, separated by "
        "commas, semicolons or newlines. --needle_lengths adds a needle-in-a-haystack test. "
        "--trajectories walks through dialogues with tools, turn by turn. It compares the model's "
        "calls with the recorded ones and gives the recorded results back. No tool is executed. "
        "The numbers are those of --eval_generate and --needle_lengths in training."
    )
    add = command.add_argument
    add_model_arguments(command)
    add("file", nargs="?", metavar="FILE", help="dialogues with a mode, or hf:OWNER/NAME[:SPLIT]")
    add(
        "--mode",
        choices=("auto", "fast", "slow"),
        default="auto",
        help="mode of records that state none (default: as their answers say)",
    )
    add("--data_policy", metavar="KIND=ACTION", help="for findings in FILE, as in training")
    add(
        "--number",
        type=int,
        default=64,
        metavar="N",
        help="number of questions (default: %(default)s)",
    )
    add(
        "--max_new_tokens",
        type=int,
        default=512,
        help="most tokens of an answer (default: %(default)s)",
    )
    add("--metric", metavar="FILE.py:FUNCTION", help="a metric of your own over these answers")
    add("--answers", type=Path, metavar="FILE", help="write questions and answers there")
    add("--needle_lengths", metavar="TOKENS", help="lengths of texts, such as 1024,4096,16384")
    add("--needle_number", type=int, default=8, help="texts of each length (default: %(default)s)")
    add(
        "--trajectories",
        type=int,
        default=0,
        metavar="N",
        help="walk through the first N dialogues of FILE in which tools are called",
    )
    add("--run", type=Path, dest="run_folder", metavar="RUN", help="show the needles in its report")
    add("--json", action="store_true", help="print the numbers for programs")
    command.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> Deferred:
    """Check what is asked of which model.

    Raises:
        ServeError: nothing to ask, or no model to ask.
    """
    lengths = needle_lengths(arguments.needle_lengths)
    _check(arguments)
    log_to_screen()  # and so keep Python's warnings off it
    if arguments.file:
        arguments.file = fetch_data_names(arguments.file, download_dir=arguments.download_dir)
        list_sources(arguments.file, setting="FILE")
        parse_policies(arguments.data_policy or "")
    place_model(arguments)
    shape = check_model(arguments)
    check_needles_fit(
        arguments.needle_lengths,
        context_length=shape.context_length,
        model=str(arguments.model),
    )
    return Deferred("evaluate", {"arguments": arguments, "lengths": lengths})


def _check(arguments: argparse.Namespace) -> None:
    for name in ("number", "max_new_tokens", "needle_number"):
        if vars(arguments)[name] < 1:
            raise ServeError(f"{name} is {vars(arguments)[name]}; set it to 1 or more")
    if arguments.metric:
        check_metric_file(arguments.metric, called="metric")
    if arguments.trajectories < 0 or (arguments.trajectories and not arguments.file):
        raise ServeError(
            f"trajectories is {arguments.trajectories}; give how many to walk through, and a FILE "
            "of dialogues with tools"
        )
    if not (arguments.file or arguments.needle_lengths):
        raise ServeError(
            "there is nothing to ask: give a FILE of dialogues, or --needle_lengths 1024,4096"
        )
    if arguments.run_folder and not (arguments.run_folder / METRICS).exists():
        raise ServeError(
            f"run is {arguments.run_folder}, which holds no {METRICS}; give the output_dir of a run"
        )
