"""`python -m hunyuan_train evaluate`: how well a model on disk answers held-out questions.

The same questions and numbers as `--eval_generate` in training, through plain Transformers: for a
model before it is fine-tuned, and for what is served afterwards.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.serve.errors import ServeError

if TYPE_CHECKING:
    from hunyuan_train.serve.generate import ServedModel
    from hunyuan_train.serve.judge import Judgement, Question

LABELS = {
    "eval_valid_format": "well-formed",
    "eval_mode_leak": "wrong mode",
    "eval_exact_match": "exact match",
    "eval_set_f1": "set F1",
}


def add_evaluate_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    command = subparsers.add_parser(
        "evaluate", help="judge a model's answers to held-out questions"
    )
    command.description = (
        "Let a model answer the questions of a file, greedily, and compare with the answers that "
        "the file has: format, mode, exact match, and F1 of the answers as sets (what stands "
        "between commas, semicolons and newlines). The numbers are those of --eval_generate."
    )
    add = command.add_argument
    add("model", type=Path, metavar="MODEL", help="model or adapter folder")
    add("file", type=Path, metavar="FILE", help="dialogues with a mode, in any form")
    add("--base", type=Path, metavar="DIR", help="the adapter's base model")
    add("--tokenizer", type=Path, metavar="DIR", help="default: the model's")
    add("--number", type=int, default=64, metavar="N", help="questions (default: %(default)s)")
    add("--max_new_tokens", type=int, default=512, help="of an answer (default: %(default)s)")
    add("--answers", type=Path, metavar="FILE", help="write questions and answers there")
    add("--json", action="store_true", help="print the numbers for programs")
    command.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Ask, judge and print.

    Raises:
        ServeError: nothing to ask, or no model to ask.
    """
    from hunyuan_train.data.cache import prepare_dataset
    from hunyuan_train.serve.generate import load_model
    from hunyuan_train.serve.judge import choose_questions, score

    for name in ("number", "max_new_tokens"):
        if vars(arguments)[name] < 1:
            raise ServeError(f"{name} is {vars(arguments)[name]}; set it to 1 or more")
    screen = Console(stderr=True)
    with screen.status(f"loading {arguments.model}"):
        served = load_model(arguments.model, base=arguments.base, tokenizer=arguments.tokenizer)
    data = DataConfig(
        train_data_file=str(arguments.file), max_seq_length=served.shape.max_position_embeddings
    )
    dataset = prepare_dataset(data, served.tokenizer)
    questions = choose_questions(dataset, served.tokenizer, arguments.number)
    if not questions:
        raise ServeError(
            f"{arguments.file} has no fast or slow answer to ask for; give records with a mode"
        )
    judged = ask(served, questions, arguments, screen)
    numbers = score(judged)
    if arguments.json:
        print(json.dumps(numbers))  # noqa: T201 the answer itself
    else:
        Console().print(make_table(numbers))
    return 0


def ask(
    served: "ServedModel",
    questions: "list[Question]",
    arguments: argparse.Namespace,
    screen: Console,
) -> "list[Judgement]":
    """Let the model answer every question, and keep the answers where that is asked for.

    Raises:
        ServeError: they cannot be written.
    """
    from hunyuan_train.serve.generate import Sampling, generate
    from hunyuan_train.serve.judge import describe_answer, judge

    sampling = Sampling(max_new_tokens=arguments.max_new_tokens, temperature=0)
    judged, rows = [], []
    for question in track(questions, "answering", console=screen, transient=True):
        output = served.tokenizer.decode(generate(served, question.prompt, sampling)[0])
        judged.append(judge(question, output))
        rows.append(describe_answer(question, output, judged[-1], served.tokenizer))
    if arguments.answers:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            arguments.answers.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ServeError(
                f"answers is {arguments.answers}, which cannot be written: {error.strerror}"
            ) from error
    return judged


def make_table(numbers: dict[str, Any]) -> Table:
    """The numbers, over all answers and by mode."""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{numbers['eval_answers']} answers")
    suffixes = {"all": "", "fast": "_fast", "slow": "_slow"}
    for head in suffixes:
        table.add_column(head, justify="right")
    for name, label in LABELS.items():
        values = [numbers.get(f"{name}{suffix}") for suffix in suffixes.values()]
        table.add_row(label, *("" if value is None else f"{value:.3f}" for value in values))
    return table
