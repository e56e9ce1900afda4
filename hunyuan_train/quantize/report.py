"""What `quantize` says at its end: one table, the same numbers as a file, and whether they do."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from rich.table import Table

SURVIVES = 0.95  # of what fine-tuning gained; less is an error
MIN_TOKENS = 256  # of a group that may decide: fewer say little
ANSWERS = {
    "eval_exact_match": "exact match",
    "eval_set_f1": "set F1",
    "eval_mode_leak_fast": "wrong mode, fast",
    "eval_mode_leak_slow": "wrong mode, slow",
}


def find_undone(report: Mapping[str, Any]) -> str:
    """The group of trained tokens of which too little survives, in words; "" where enough does."""
    for name, numbers in report.get("survival", {}).items():
        share = numbers["survives"]
        counts = name == "all" or numbers["tokens"] >= MIN_TOKENS
        if counts and share is not None and not share >= SURVIVES:  # NaN does not survive
            of = "trained tokens" if name == "all" else f"trained {name} tokens"
            return f"{share:.1%} of what fine-tuning gained on {of}"
    return ""


def find_nonsense(report: Mapping[str, Any]) -> str:
    """The number of the loss that is NaN or infinite, in words; "" where all are numbers."""
    for part in ("held_out", "survival"):
        for name, numbers in report.get(part, {}).items():
            for key, value in numbers.items():
                if value is not None and not isfinite(value):
                    return f"{key.replace('_', ' ')} of {name} is {value}"
    return ""


def make_tables(report: Mapping[str, Any]) -> Iterable[Table]:
    """The table of losses and survival by mode and span; that of generated answers."""
    held_out, survival = report.get("held_out", {}), report.get("survival", {})
    if held_out or survival:
        table = _table(
            f"{report['format']}",
            "perplexity",
            "quantised",
            "KL (nats)",
            "same argmax",
            "gain (nats)",
            "survives",
        )
        for name in [*held_out, *(one for one in survival if one not in held_out)]:
            table.add_row(name, *_loss_cells(held_out.get(name)), *_gain_cells(survival.get(name)))
        yield table
    if "answers" in report:
        table = _table(f"{report['answers']['after']['eval_answers']} answers", "as it was", "now")
        for name, label in ANSWERS.items():
            values = [report["answers"][which].get(name) for which in ("before", "after")]
            if None not in values:
                table.add_row(label, *(f"{value:.3f}" for value in values))
        yield table


def describe_sizes(report: Mapping[str, Any]) -> str:
    """Sizes and memory in a line."""
    sizes = report["bytes_before"], report["bytes_after"]
    share = sizes[1] / sizes[0]
    return (
        f"{sizes[0] / 1e9:.2f} GB before, {sizes[1] / 1e9:.2f} GB after ({share:.0%}); "
        f"written in {report['write_seconds']:.0f} s with {report['write_memory_bytes'] / 1e9:.2f} "
        f"GB of memory, measured with {report['peak_memory_bytes'] / 1e9:.2f} GB"
    )


def _loss_cells(numbers: Mapping[str, float] | None) -> list[str]:
    if numbers is None:
        return [""] * 4
    return [
        f"{numbers['perplexity_before']:.3f}",
        f"{numbers['perplexity_after']:.3f}",
        f"{numbers['kl_divergence']:.5f}",
        f"{numbers['same_argmax']:.1%}",
    ]


def _gain_cells(numbers: Mapping[str, float | None] | None) -> list[str]:
    if numbers is None:
        return [""] * 2
    share = numbers["survives"]
    return [f"{numbers['gain']:.3f}", "too little gain" if share is None else f"{share:.1%}"]


def _table(head: str, *columns: str) -> Table:
    table = Table(head, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table
