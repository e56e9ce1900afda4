"""Held-out questions in the report: the data's answer, that before training, and the last one."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hunyuan_train.families.grammar.find import find_grammar
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.report.record import Row, RunRecord

MAX_UNFOLDED = 6  # questions


def label_of(label: str, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """What something of a run is called on a page about some runs."""
    return f"{run.name}: {label}" if len(runs) > 1 else label


def write_grid(figures: Sequence[str]) -> str:
    """Parts side by side, as many as the screen has room for."""
    return f'<div class="grid">{"".join(figures)}</div>'


def write_answers(runs: Sequence[RunRecord]) -> str:
    """Each held-out question with the first and the last answer to it, of every run."""
    cells: dict[str, list[str]] = {}
    for run in runs:
        grammar = _grammar_of(run)
        for question, answers in _by_question(run.answers).items():
            reference = str(answers[0]["reference"])
            data = _write_cell("data", reference, "dim", grammar)
            of_question = cells.setdefault(question, [data])
            for row in [answers[0], answers[-1]] if len(answers) > 1 else answers:
                head = _describe(row, run, runs)
                of_question.append(_write_cell(head, str(row["output"]), "", grammar))
    parts = [
        f'<div class="answer"><pre>{escape(question)}</pre>{write_grid(of_question)}</div>'
        for question, of_question in cells.items()
    ]
    shown, folded = parts[:MAX_UNFOLDED], parts[MAX_UNFOLDED:]
    if folded:
        head = f"<summary>{len(folded)} more questions</summary>"
        shown.append(f"<details>{head}{''.join(folded)}</details>")
    return "".join(shown)


def _by_question(rows: Sequence[Row]) -> dict[str, list[Row]]:
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(f"{row['prompt']}", []).append(row)
    return questions


def _grammar_of(run: RunRecord) -> Grammar:
    folder = run.settings.get("tokenizer_name_or_path") or run.settings.get("model_name_or_path")
    return find_grammar(Path(folder) if folder else None)


def _describe(row: Row, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """When an answer was given, and what it is worth."""
    when = "before training" if row["step"] == 0 else f"step {row['step']}"
    marks = ["exact" if row["is_exact"] else f"set F1 {row['set_f1']:.2f}"]
    marks += [] if row["is_well_formed"] else ["not well-formed"]
    marks += ["wrong mode"] if row["is_leaking"] else []
    return f"{label_of(when, run, runs)} ({row['mode']}; {', '.join(marks)})"


def _write_cell(head: str, output: str, kind: str, grammar: Grammar) -> str:
    """An answer taken apart, its thoughts dim; as it is where it does not follow the grammar."""
    parsed = grammar.parse_output(output)
    body = f"<pre>{escape(output)}</pre>"
    if parsed.is_well_formed:
        thoughts = escape(parsed.reasoning_content or "")
        body = f'<pre class="dim">{thoughts}</pre>' if thoughts else ""
        body += f"<pre>{escape(parsed.content or '')}</pre>"
    return f'<div class="{kind}"><b>{escape(head)}</b>{body}</div>'
