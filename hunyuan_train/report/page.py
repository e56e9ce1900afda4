"""The report of one run, or of several side by side, as one HTML page."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from hunyuan_train.html_page import write_advice, write_document, write_table
from hunyuan_train.objectives.loss_groups import BY_MODE, BY_SPAN
from hunyuan_train.objectives.preference_warnings import find_warnings
from hunyuan_train.report.answers import label_of, write_answers, write_grid
from hunyuan_train.report.charts import Curve, draw_chart, draw_heat_map, short
from hunyuan_train.report.record import RunRecord

STYLE = """
body { max-width: 1080px }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr));
        gap: 1.2em }
figure { margin: 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto }
svg text { font-size: 10px; fill: currentColor } .grid line.grid { stroke: currentColor;
        stroke-opacity: .15 } polyline { fill: none; stroke-width: 1.5 }
.legend { display: flex; flex-wrap: wrap; gap: 0 1em; font-size: 12px }
.legend .key { width: 24px; height: 8px; margin-right: .4em }
.c0 { stroke: #2f7ed8 } .c1 { stroke: #d9822b } .c2 { stroke: #2e9e5b } .c3 { stroke: #c2473d }
.c4 { stroke: #8e63c7 } .c5 { stroke: #8a8a2c } line { stroke-width: 1.5 } circle { fill: none }
.heat rect { fill: #c2473d } .heat { background: rgba(128, 128, 128, .12) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2em 0; font-size: 13px }
.answer { border-top: 1px solid rgba(128, 128, 128, .4); padding: .4em 0 } .dim { opacity: .65 }
details { margin: .6em 0 } .wide { overflow-x: auto }
"""

NONE = "none"

_OF_MODES = tuple(f"_{mode}" for mode in BY_MODE)

# Title, and the numbers in it with their labels.
CHARTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": "training", "eval_loss": "held out"}),
    ("loss by mode", {f"loss_{group}": group for group in BY_MODE}),
    ("loss by span", {f"loss_{group}": group for group in BY_SPAN}),
    (
        "held-out loss by mode and span",
        {f"eval_loss_{group}": group for group in (*BY_MODE, *BY_SPAN)},
    ),
    (
        "answers to held-out questions",
        {
            "eval_valid_format": "well-formed",
            "eval_exact_match": "exact",
            "eval_set_f1": "set F1",
            "eval_mode_leak_fast": "fast that think",
            "eval_mode_leak_slow": "slow that do not",
        },
    ),
    (
        "rewards of answers",
        {
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "rewards/margins": "margin",
            "eval_rewards/margins": "margin, held out",
        },
    ),
    (
        "pairs with the chosen answer ahead",
        {"rewards/accuracies": "training"}
        | {f"eval_rewards/accuracies{end}": f"held out{end}" for end in ("", *_OF_MODES)},
    ),
    (
        "log-probabilities of answers",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"}
        | {f"eval_logps/{side}": f"{side}, held out" for side in ("chosen", "rejected")},
    ),
    ("distance to the reference", {"kl": "training", "eval_kl": "held out"}),
    ("learning rate", {"learning_rate": "learning rate"}),
    ("gradient norm, before clipping", {"grad_norm": "norm"}),
    ("TFLOP/s per process", {"tflops_per_gpu": "model operations"}),
    ("share of the GPU's peak (MFU)", {"mfu": "MFU"}),
    (
        "seconds of a step",
        {
            "step_seconds": "whole",
            "seconds_data": "data",
            "seconds_forward": "forward",
            "seconds_backward": "backward",
            "seconds_optimizer": "optimizer",
            "seconds_communication": "collectives, within these",
        },
    ),
    (
        "seconds of saving",
        {
            "checkpoint_seconds": "last save, beside training",
            "checkpoint_stall_seconds": "training waited, in all",
        },
    ),
    ("router load", {"router_entropy": "entropy, mean", "router_entropy_min": "entropy, lowest"}),
    ("busiest expert beyond an equal share", {"expert_imbalance": "largest violation"}),
    ("dead experts", {"dead_experts": "of all layers"}),
    ("routing's distance from the base model", {"router_drift": "largest drift"}),
)

# Numbers that are drawn with the one that was planned.
SPEED = {"tokens_per_second": "all", "tokens_per_second_per_gpu": "per process"}
MEMORY = {"memory_gib": "fullest process, peak", "host_memory_gib": "host"}

SUMMARY: dict[str, Callable[[float], str]] = {
    "step": lambda value: f"{value:,.0f}",
    "loss": lambda value: f"{value:.4f}",
    "eval_loss": lambda value: f"{value:.4f}",
    "eval_perplexity": lambda value: f"{value:,.2f}",
    "eval_rewards/accuracies": lambda value: f"{value:.1%}",
    "eval_rewards/margins": lambda value: f"{value:.3f}",
    "eval_valid_format": lambda value: f"{value:.1%}",
    "eval_exact_match": lambda value: f"{value:.1%}",
    "eval_set_f1": lambda value: f"{value:.3f}",
    "tokens_seen": lambda value: f"{value:,.0f}",
    "mfu": lambda value: f"{value:.1%}",
    "packing_efficiency": lambda value: f"{value:.1%}",
    "checkpoint_step": lambda value: f"{value:,.0f}",
    "checkpoint_failures": lambda value: f"{value:,.0f}",
    "restarts": lambda value: f"{value:,.0f}",
}


def write_report(runs: Sequence[RunRecord]) -> str:
    """One page for one run or several, which share charts: colours tell numbers, dashes runs."""
    title = " and ".join(run.name for run in runs)
    parts = [write_summary(runs), *write_warnings(runs)]
    parts += ["<h2>Curves</h2>", write_charts(runs)]
    parts += (
        ["<h2>Experts</h2>", write_grid(write_heat_maps(runs))]
        if _have(runs, "router_loads")
        else []
    )
    parts += ["<h2>Answers</h2>", write_answers(runs)] if _have(runs, "answers") else []
    parts += ["<h2>Long texts</h2>", write_needles(runs)] if _have(runs, "needles") else []
    parts += ["<h2>Data</h2>", write_data(runs)]
    parts += ["<h2>Settings</h2>", write_settings(runs)]
    parts += ["<h2>Starts</h2>", write_starts(runs)] if _have(runs, "starts") else []
    return write_document(f"Run {title}", [part for part in parts if part], style=STYLE)


def _have(runs: Sequence[RunRecord], part: str) -> bool:
    parts = {"router_loads": [run.router_loads for run in runs]}
    parts |= {"needles": [run.needles for run in runs]}
    parts |= {"answers": [run.answers for run in runs], "starts": [run.starts for run in runs]}
    return any(parts[part])


def _table(rows: dict[str, list[str]], runs: Sequence[RunRecord]) -> str:
    heads = [run.name for run in runs] if len(runs) > 1 else []
    return f'<div class="wide">{write_table(rows, heads=heads)}</div>'


def write_summary(runs: Sequence[RunRecord]) -> str:
    """The last value of what matters most, and memory and speed against the plan."""
    rows = {}
    for name, form in SUMMARY.items():
        values = [run.last(name) for run in runs]
        if any(value is not None for value in values):
            shown = [form(value) if value is not None else NONE for value in values]
            rows[name.replace("_", " ")] = shown
    rows["tokens per second, median"] = [describe_speed(run) for run in runs]
    rows["memory, fullest process"] = [describe_memory(run) for run in runs]
    return _table(rows, runs)


def describe_speed(run: RunRecord) -> str:
    """Measured against plan."""
    values = [value for _, value in run.series("tokens_per_second")]
    if not values:
        return NONE
    measured, planned = median(values), run.plan.get("tokens_per_second")
    return f"{measured:,.0f}" + _against(measured, planned, f"{planned or 0:,.0f}")


def describe_memory(run: RunRecord) -> str:
    """Peak against plan."""
    peak = max((value for _, value in run.series("memory_gib")), default=None)
    if peak is None:
        return NONE
    planned = run.plan.get("memory_gib")
    return f"{peak:.2f} GiB" + _against(peak, planned, f"{planned or 0:.2f}")


def _against(measured: float, planned: float | None, shown: str) -> str:
    return f" of {shown} planned ({measured / planned - 1:+.0%})" if planned else ""


def write_warnings(runs: Sequence[RunRecord]) -> list[str]:
    """What went wrong, or nearly."""
    texts = []
    for run in runs:
        label = f"{run.name}: " if len(runs) > 1 else ""
        skipped = sum(bool(row.get("is_skipped")) for row in run.quarantine)
        if run.quarantine:
            texts.append(f"{label}{len(run.quarantine)} bad steps, {skipped} of them left out")
        texts += [f"{label}{text}" for text in find_warnings(run.metrics)]
        for text, count in run.warnings.items():
            texts.append(f"{label}{text}" + (f" ({count} times)" if count > 1 else ""))
    return [write_advice(text) for text in texts]


def write_charts(runs: Sequence[RunRecord]) -> str:
    """Every chart that some run has numbers for."""
    figures = []
    for title, names in CHARTS:
        curves = [
            Curve(label_of(label, run, runs), run.series(name), colour, index)
            for index, run in enumerate(runs)
            for colour, (name, label) in enumerate(names.items())
        ]
        is_curve = any(len(curve.points) > 1 for curve in curves)
        if is_curve or all(len(run.metrics) == 1 for run in runs):
            figures.append(draw_chart(title, curves))
    figures.append(
        draw_chart("tokens per second", planned_curves(runs, SPEED, "tokens_per_second"))
    )
    figures.append(draw_chart("memory, GiB", planned_curves(runs, MEMORY, "memory_gib")))
    return write_grid([figure for figure in figures if figure])


def planned_curves(runs: Sequence[RunRecord], names: dict[str, str], planned: str) -> list[Curve]:
    """Numbers as they were measured, and the one that the plan foresaw."""
    curves = []
    for index, run in enumerate(runs):
        measured = [run.series(name) for name in names]
        for colour, (label, series) in enumerate(zip(names.values(), measured, strict=True)):
            curves.append(Curve(label_of(label, run, runs), series, colour, index))
        if planned in run.plan and measured[0]:
            value = float(run.plan[planned])
            points = [(measured[0][0][0], value), (measured[0][-1][0], value)]
            curves.append(Curve(label_of("planned", run, runs), points, 3, index))
    return curves


def write_heat_maps(runs: Sequence[RunRecord]) -> str:
    """Expert load of the base model and at the end, a line for each run."""
    lines = []
    for run in runs:
        loads = [row for row in run.router_loads if row.get("load")]
        figures = []
        for row in [loads[0], loads[-1]] if len(loads) > 1 else loads:
            what = "before training" if row["kind"] == "profile" else f"at step {row['step']}"
            figures.append(draw_heat_map(label_of(f"load {what}", run, runs), row["load"]))
        lines.append(write_grid(figures))
    return "".join(lines)


def write_needles(runs: Sequence[RunRecord]) -> str:
    """Shares of facts found in texts of each length, by each model that was asked."""
    found: dict[str, dict[int, list[bool]]] = {}
    for run in runs:
        for row in run.needles:
            by_length = found.setdefault(label_of(row["model"], run, runs), {})
            by_length.setdefault(row["length"], []).append(row["is_exact"])
    lengths = sorted({length for by_length in found.values() for length in by_length})
    rows = {
        model: [_share(by_length.get(length, [])) for length in lengths]
        for model, by_length in found.items()
    }
    heads = [f"{length:,} tokens" for length in lengths]
    table = write_table(rows, heads=heads)
    return (
        f'<p class="dim">facts found in texts of so many tokens</p><div class="wide">{table}</div>'
    )


def _share(are_right: Sequence[bool]) -> str:
    return f"{sum(are_right)} of {len(are_right)}" if are_right else NONE


def write_data(runs: Sequence[RunRecord]) -> str:
    """Samples and tokens by source, what was found in the data, and what it is."""
    rows: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        seen: dict[str, Any] = run.metrics[-1]
        for name, value in seen.items():
            for prefix in ("samples_seen_", "tokens_seen_"):
                if name.startswith(prefix) and value is not None:
                    label = f"{prefix.split('_')[0]} of {name.removeprefix(prefix)}"
                    rows.setdefault(label, [NONE] * len(runs))[index] = f"{value:,}"
        start = run.starts[-1] if run.starts else {}
        if found := start.get("found"):
            rows.setdefault("found", [NONE] * len(runs))[index] = found
        if data := start.get("data"):
            rows.setdefault("fingerprint", [NONE] * len(runs))[index] = str(data["samples"])[:16]
    return _table(rows, runs)


def write_settings(runs: Sequence[RunRecord]) -> str:
    """All settings, folded; where runs differ, that first."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    values = {name: [str(run.settings.get(name, NONE)) for run in runs] for name in names}
    differing = {name: row for name, row in values.items() if len(set(row)) > 1}
    first = _table(differing, runs) if differing else ""
    return f"{first}<details><summary>all settings</summary>{_table(values, runs)}</details>"


def write_starts(runs: Sequence[RunRecord]) -> str:
    """When each process of a run began, and with what code."""
    rows = {}
    for run in runs:
        for number, start in enumerate(run.starts, start=1):
            git = start.get("git") or {}
            commit = str(git.get("commit", "no git"))[:10] + (
                " changed" if git.get("is_dirty") else ""
            )
            versions = ", ".join(f"{name} {value}" for name, value in start["versions"].items())
            where = f"{start['num_processes']} on {start['device']}"
            rows[label_of(f"start {number}", run, runs)] = [
                f"{start['time']}, from step {short(start['step'])}, {where}, {commit}; {versions}"
            ]
    return f'<div class="wide">{write_table(rows)}</div>'
