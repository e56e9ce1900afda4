"""What a model answers to held-out questions, scored and shown, once all is checked."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hunyuan_train.config.run_files import NEEDLES
from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.findings import parse_policies
from hunyuan_train.evaluation.needle_in_a_haystack import (
    MAX_NEW_TOKENS,
    NEEDLE_SEED,
    describe_needles,
    make_needles,
    score_needles,
)
from hunyuan_train.evaluation.scoring import (
    choose_questions,
    describe_answer,
    score_answer,
    summarize,
)
from hunyuan_train.evaluation.trajectories import (
    read_trajectories,
    summarize_trajectories,
    walk_trajectories,
)
from hunyuan_train.evaluation.user_metric import load_metric, measure
from hunyuan_train.json_lines import Numbers
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.generate import Sampling, ServedModel, generate, load_model
from hunyuan_train.terminal import PlainConsole, say

LABELS = {
    "eval_valid_format": "well-formed",
    "eval_mode_leak": "wrong mode",
    "eval_exact_match": "exact match",
    "eval_set_f1": "set F1",
}
CALL_LABELS = {
    "eval_call_accuracy": "right (type and value)",
    "eval_call_exact": "exact",
    "eval_call_name": "names right",
    "eval_call_accuracy_none": "right, no call due",
    "eval_call_accuracy_one": "right, one call due",
    "eval_call_accuracy_many": "right, several due",
    "eval_call_undue": "called, none due",
    "eval_call_missed": "no call, one due",
    "eval_call_parse_errors": "not read as calls",
}
TRAJECTORY_LABELS = {
    "trajectory_success": "without a mistake",
    "trajectory_progress": "of each, before a mistake",
    "trajectory_turns": "turns right",
}


def score_and_show(arguments: argparse.Namespace, lengths: list[int]) -> int:
    """Ask, score and print.

    Args:
        arguments: of the command.
        lengths: of the needles' texts, in tokens.

    Raises:
        ServeError: nothing to ask.
    """
    screen = PlainConsole(stderr=True)
    with screen.status(f"loading {arguments.model}"):
        served = load_model(
            arguments.model,
            base=arguments.base,
            tokenizer=arguments.tokenizer,
            as_trained=not arguments.any_base,
        )
    numbers: Numbers = {}
    if arguments.file:
        numbers |= score_file(served, arguments, screen)
    if arguments.trajectories:
        numbers |= walk_file(served, arguments, screen)
    if lengths:
        numbers |= find_needles(served, lengths, arguments, screen)
    if arguments.json:
        say(json.dumps(numbers))
        return 0
    for table in make_tables(numbers):
        PlainConsole().print(table)
    return 0


def score_file(served: ServedModel, arguments: argparse.Namespace, screen: Console) -> Numbers:
    """Scores of the answers to a file's questions.

    Raises:
        ServeError: it has none.
    """
    data = DataConfig(
        train_data_file=arguments.file,
        max_seq_length=served.shape.context_length,
        mode=arguments.mode,
        data_policy=_choose_policy(arguments.data_policy),
    )
    dataset = prepare_dataset(data, served.tokenizer)
    questions = choose_questions(dataset, served.tokenizer, arguments.number)
    if not questions:
        raise ServeError(
            f"{arguments.file} has no fast or slow answer to ask for; give records with a mode, or "
            "say theirs with --mode fast or --mode slow"
        )
    prompts = [question.prompt for question in questions]
    outputs = ask(served, prompts, arguments.max_new_tokens, screen)
    scores = [score_answer(*pair) for pair in zip(questions, outputs, strict=True)]
    if arguments.answers:
        answers = zip(questions, outputs, scores, strict=True)
        rows = [describe_answer(*one, served.tokenizer) for one in answers]
        write_rows(arguments.answers, rows, mode="w")
    numbers = summarize(scores)
    if arguments.metric:
        metric = load_metric(arguments.metric)
        words = served.tokenizer
        numbers |= measure(metric, questions, outputs, words, setting=arguments.metric)
    return numbers


def _choose_policy(given: str | None) -> str:
    """What is done about findings: nothing is taught, so what has no mode is only not asked."""
    policies = {"untagged": "note"} | parse_policies(given or "")
    return ",".join(f"{kind}={action}" for kind, action in policies.items())


def walk_file(served: ServedModel, arguments: argparse.Namespace, screen: Console) -> Numbers:
    """How well the model walks through a file's trajectories.

    Raises:
        ServeError: it has none.
    """
    walks = read_trajectories(str(arguments.file), served.tokenizer, arguments.trajectories)
    if not walks:
        raise ServeError(
            f"{arguments.file} has no dialogue in which a tool is called; drop --trajectories"
        )

    def answer(prompts: list[list[int]]) -> list[str]:
        return ask(served, prompts, arguments.max_new_tokens, screen)

    walk_trajectories(walks, served.tokenizer, answer)
    if arguments.answers:
        write_rows(arguments.answers, [row for walk in walks for row in walk.rows], mode="a")
    return summarize_trajectories(walks)


def find_needles(
    served: ServedModel, lengths: list[int], arguments: argparse.Namespace, screen: Console
) -> Numbers:
    """Shares of facts that were found, by length."""
    number = arguments.needle_number
    needles = make_needles(served.tokenizer, lengths, number=number, seed=NEEDLE_SEED)
    prompts = [needle.question.prompt for needle in needles]
    outputs = ask(served, prompts, MAX_NEW_TOKENS, screen)
    if arguments.run_folder:
        rows = describe_needles(needles, outputs, step=0, model=str(arguments.model))
        write_rows(arguments.run_folder / NEEDLES, rows, mode="a")
    return score_needles(needles, outputs)


def ask(
    served: ServedModel, prompts: list[list[int]], max_new_tokens: int, screen: Console
) -> list[str]:
    """The model's answer to every prompt, greedy."""
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0)
    return [
        served.tokenizer.decode(generate(served, prompt, sampling)[0])
        for prompt in track(prompts, "answering", console=screen, transient=True)
    ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, mode: str) -> None:
    """Write JSON lines.

    Raises:
        ServeError: that is not possible.
    """
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise ServeError(f"{path} cannot be written: {error.strerror}") from error


def make_tables(numbers: Numbers) -> Iterable[Table]:
    """Answers over all and by mode; needles by length."""
    if "eval_answers" in numbers:
        suffixes = {"all": "", "fast": "_fast", "slow": "_slow"}
        table = _table(f"{numbers['eval_answers']} answers", *suffixes)
        for name, label in LABELS.items():
            values = [numbers.get(f"{name}{suffix}") for suffix in suffixes.values()]
            table.add_row(label, *("" if value is None else f"{value:.3f}" for value in values))
        yield table
    if "eval_calls" in numbers:
        yield _table_of(f"{numbers['eval_calls']} answers with tools", CALL_LABELS, numbers)
        by_tool = {name: name.partition("/")[2] for name in numbers if "call_accuracy/" in name}
        if by_tool:
            yield _table_of("right calls of", by_tool, numbers)
    own = {name: name.partition("_")[2] for name in numbers if name.startswith("eval_metric")}
    if own:
        yield _table_of("your metric", own, numbers)
    if "trajectories" in numbers:
        head = f"{numbers['trajectories']} trajectories"
        yield _table_of(head, TRAJECTORY_LABELS, numbers)
    lengths = [name.partition("_")[2] for name in numbers if name.startswith("needles_")]
    if lengths:
        table = _table("tokens", *lengths)
        table.add_row("needles found", *(f"{numbers[f'needles_{one}']:.3f}" for one in lengths))
        yield table


def _table_of(head: str, labels: dict[str, str], numbers: Numbers) -> Table:
    table = _table(head, "share")
    for name, label in labels.items():
        if name in numbers:
            table.add_row(label, f"{numbers[name]:.3f}")
    return table


def _table(head: str, *columns: str) -> Table:
    table = Table(head, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table
