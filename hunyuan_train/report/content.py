"""What a page shows of its runs, as JSON: the same for the live page and for a frozen one."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hunyuan_train.errors import DataError
from hunyuan_train.evaluation.tool_calls import list_by_tool
from hunyuan_train.families.grammar.find import find_grammar
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.report.advice import advise
from hunyuan_train.report.buckets import make_buckets
from hunyuan_train.report.charts import list_charts
from hunyuan_train.report.record import RunRecord
from hunyuan_train.report.row_file import Row
from hunyuan_train.report.state import find_state
from hunyuan_train.report.verdict import judge

MAX_LOADS = 60  # pictures of the experts' load
MAX_TOOL_STEPS = 5  # columns of the table of tools, beside the first
MAX_QUESTIONS, MAX_ANSWERS = 40, 12  # shown; of each question the first answer and the last ones
SHARE_DIGITS = 5

# Label, number of the metrics, and how it is written.
LATEST: tuple[tuple[str, str, str], ...] = (
    ("training loss", "loss", "{:.4f}"),
    ("held-out loss", "eval_loss", "{:.4f}"),
    ("held-out perplexity", "eval_perplexity", "{:,.2f}"),
    ("pairs with the chosen answer ahead", "eval_rewards/accuracies", "{:.1%}"),
    ("margin of rewards", "eval_rewards/margins", "{:.3f}"),
    ("answers well-formed", "eval_valid_format", "{:.1%}"),
    ("answers exact", "eval_exact_match", "{:.1%}"),
    ("answers, set F1", "eval_set_f1", "{:.3f}"),
    ("answers with tools, calls right", "eval_call_accuracy", "{:.1%}"),
    ("tokens seen", "tokens_seen", "{:,.0f}"),
    ("epochs", "epoch", "{:.2f}"),
    ("MFU", "mfu", "{:.1%}"),
    ("rows filled", "packing_efficiency", "{:.1%}"),
    ("last checkpoint", "checkpoint_step", "step {:,.0f}"),
)


def describe_run(run: RunRecord, key: str, now: float) -> dict[str, Any]:
    """The state of a run, its verdict, and all that is small.

    Args:
        key: of the run on this page.
        now: seconds since 1970.
    """
    state = find_state(run, now)
    table = run.metrics
    return {
        "key": key,
        "name": run.name,
        "folder": str(run.folder),
        "state": state.to_json(),
        "verdict": [asdict(one) for one in judge(run, state)],
        "latest": list_latest(run),
        "warnings": list_warnings(run),
        "hosts": [asdict(one) for one in run.status.hosts] if run.status else [],
        "tries": [asdict(one) for one in run.status.tries] if run.status else [],
        "names": table.columns.names(),
        "plan": {name: run.plan.get(name) for name in ("memory_gib", "tokens_per_second")},
        "read": {
            "num_lines": table.columns.num_rows,
            "is_sample": table.sample is not None,
            "share": round(table.share_read, 3),
        },
        "versions": {
            "metrics": [table.columns.num_rows, table.sample is None, run.last_step],
            "answers": [len(run.answers.rows), len(run.samples.rows), len(run.pairs.rows)],
            "loads": len(run.router_loads.rows),
        },
    }


def list_latest(run: RunRecord) -> list[list[str]]:
    """The latest values of what matters most, in words."""
    rows = []
    for label, name, form in LATEST:
        value = run.last(name)
        if value is not None:
            rows.append([label, form.format(value) if np.isfinite(value) else "not finite"])
    return rows


def list_warnings(run: RunRecord) -> list[dict[str, Any]]:
    """What the log warns of, with what to do, and what could not be read."""
    found = [
        {"text": one.text, "count": one.count, "last": one.last, "advice": advise(one.text)}
        for one in list(run.log.warnings.values())
    ]
    return found + [
        {"text": fault, "count": 1, "last": "", "advice": "The page does without."}
        for fault in run.faults
    ]


def describe_charts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The charts for what these runs have logged."""
    return list_charts(list(dict.fromkeys(
        name for run in runs for name in run.metrics.columns.names())))  # fmt: skip


def describe_curves(
    run: RunRecord, *, first: float = -np.inf, last: float = np.inf, most: int
) -> dict[str, Any]:
    """Every curve of a run between two steps, in at most so many buckets."""
    columns = run.metrics.columns
    curves = {}
    for name in columns.names():
        steps, values = columns.series(name)
        curves[name] = make_buckets(steps, values, first=first, last=last, most=most).to_json()
    return curves


def describe_experts(run: RunRecord) -> dict[str, Any]:
    """The load of experts over time: at most `MAX_LOADS` tables of layers and experts."""
    rows = [row for row in run.router_loads.rows if row.get("load")]
    shape = (len(rows[-1]["load"]), len(rows[-1]["load"][0])) if rows else (0, 0)
    rows = [row for row in rows if (len(row["load"]), len(row["load"][0])) == shape]
    if len(rows) > MAX_LOADS:
        chosen = np.unique(np.linspace(0, len(rows) - 1, MAX_LOADS).round().astype(int))
        rows = [rows[index] for index in chosen]
    return {
        "num_layers": shape[0],
        "num_experts": shape[1],
        "steps": [row["step"] for row in rows],
        "kinds": [row["kind"] for row in rows],
        "loads": [
            [[round(share, SHARE_DIGITS) for share in layer] for layer in row["load"]]
            for row in rows
        ],
    }


def describe_answers(run: RunRecord) -> dict[str, Any]:
    """Questions with the data's answer and the model's, taken apart; those at the end besides."""
    grammar = _grammar_of(run)
    questions: dict[str, list[Row]] = {}
    for row in run.answers.rows:
        questions.setdefault(row["prompt"], []).append(row)
    shown = [
        {
            "prompt": prompt,
            "reference": take_apart(rows[0]["reference"], grammar),
            "answers": [
                {"step": row["step"], "mode": row["mode"], "marks": list_marks(row)}
                | take_apart(row["output"], grammar)
                for row in ([rows[0], *rows[1:][-MAX_ANSWERS:]])
            ],
        }
        for prompt, rows in list(questions.items())[:MAX_QUESTIONS]
    ]
    samples = [
        {"prompt": row["prompt"], "mode": row["mode"], "step": row["step"]}
        | {"marks": list_sample_marks(row)}
        | take_apart(row["output"], grammar)
        for row in run.samples.rows[-2:]
    ]
    return {
        "questions": shown,
        "num_questions": len(questions),
        "samples": samples,
        "tools": list_tools(run),
        "pairs": list_pairs(run),
    }


def _grammar_of(run: RunRecord) -> Grammar:
    folder = run.settings.get("tokenizer_name_or_path") or run.settings.get("model_name_or_path")
    try:
        return find_grammar(Path(folder) if folder else None)
    except DataError:  # moved or changed since
        return find_grammar(None)


def take_apart(output: str, grammar: Grammar) -> dict[str, str]:
    """Thoughts and answer; as it is where it does not follow the grammar."""
    parsed = grammar.parse_output(output)
    if not parsed.is_well_formed:
        return {"reasoning": "", "content": output}
    return {"reasoning": parsed.reasoning_content or "", "content": parsed.content or ""}


def list_sample_marks(row: Row) -> list[str]:
    """What is to be known of an answer at the end of a run, in words."""
    if row.get("cut_after") is not None:
        return [f"cut after {row['cut_after']:,} tokens"]
    return ["not well-formed"] if row.get("is_well_formed") is False else []


def list_marks(row: Row) -> list[str]:
    """What an answer is worth, in words."""
    marks = ["exact" if row["is_exact"] else f"set F1 {row['set_f1']:.2f}"]
    marks += [] if row["is_well_formed"] else ["not well-formed"]
    marks += ["wrong mode"] if row["is_leaking"] else []
    if (calls := row.get("calls")) is not None:
        marks.append("calls right" if calls["is_right"] else "calls wrong")
    return marks


def list_pairs(run: RunRecord) -> dict[str, Any]:
    """Held-out pairs with the margin of their rewards at the first and the last evaluation."""
    steps = sorted({row["step"] for row in run.pairs.rows})
    shown = list(dict.fromkeys([*steps[:1], *steps[-1:]]))
    margins: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in run.pairs.rows:
        pair = row["prompt"], row["chosen"], row["rejected"]
        margin = f"{row['reward_chosen'] - row['reward_rejected']:+.3f}"
        margins.setdefault(pair, {})[row["step"]] = margin
    rows = [
        [*pair, *(by_step.get(step, "none") for step in shown)] for pair, by_step in margins.items()
    ]
    return {"steps": shown, "rows": rows[:MAX_QUESTIONS]}


def list_tools(run: RunRecord) -> dict[str, Any]:
    """How often the calls of each tool were right, at each step at which answers were asked for."""
    by_step: dict[int, list[dict[str, bool]]] = {}
    for row in run.answers.rows:
        if row.get("calls") is not None:
            by_step.setdefault(row["step"], []).append(row["calls"]["by_tool"])
    steps = sorted(by_step)
    steps = steps[:1] + steps[1:][-MAX_TOOL_STEPS:]
    found = {step: list_by_tool(by_step[step]) for step in steps}
    names = dict.fromkeys(name for by_tool in found.values() for name in by_tool)
    rows = {name: [_share(found[step].get(name, [])) for step in steps] for name in names}
    return {"steps": steps, "rows": rows}


def describe_rest(run: RunRecord) -> dict[str, Any]:
    """Settings, starts, data and needles: what does not move."""
    return {
        "settings": {name: _as_text(value) for name, value in run.settings.items()},
        "starts": [describe_start(row) for row in run.starts.rows],
        "data": list_data(run),
        "needles": list_needles(run),
        "quarantine": [
            {"step": row["step"], "reason": str(row.get("reason", "")),
             "samples": [str(one) for one in (row.get("samples") or [])[:20]]}
            for row in run.quarantine.rows[:100]
        ],
    }  # fmt: skip


def _as_text(value: object) -> str:
    return "none" if value is None else str(value)


def describe_start(row: Row) -> dict[str, str]:
    """When a process of the run began, and with what code."""
    git = row.get("git") or {}
    commit = str(git.get("commit", "no git"))[:10] + (" changed" if git.get("is_dirty") else "")
    return {
        "time": row["time"],
        "step": f"{row['step']:,}",
        "where": f"{row['num_processes']} on {row['device']}",
        "code": commit,
        "versions": ", ".join(f"{name} {value}" for name, value in row["versions"].items()),
    }


def list_data(run: RunRecord) -> list[list[str]]:
    """Samples and tokens by source, what was found in the data, and what it is."""
    rows = []
    for name in run.metrics.columns.names():
        for prefix in ("samples_seen_", "tokens_seen_"):
            value = run.last(name)
            if name.startswith(prefix) and value is not None and np.isfinite(value):
                what = prefix.partition("_")[0]
                rows.append([f"{what} of {name.removeprefix(prefix)}", f"{value:,.0f}"])
    start = run.starts.rows[-1] if run.starts.rows else {}
    if found := start.get("found"):
        rows.append(["found", str(found)])
    if data := start.get("data"):
        rows.append(["fingerprint", str(data["samples"])[:16]])
    return rows


def list_needles(run: RunRecord) -> dict[str, Any]:
    """Shares of facts found in texts of each length, by each model that was asked."""
    found: dict[str, dict[int, list[bool]]] = {}
    for row in run.needles.rows:
        by_length = found.setdefault(row["model"], {})
        by_length.setdefault(row["length"], []).append(row["is_exact"])
    lengths = sorted({length for by_length in found.values() for length in by_length})
    rows = {
        model: [_share(by_length.get(length, [])) for length in lengths]
        for model, by_length in found.items()
    }
    return {"lengths": lengths, "rows": rows}


def _share(are_right: Sequence[bool]) -> str:
    return f"{sum(are_right)} of {len(are_right)}" if are_right else "none"
