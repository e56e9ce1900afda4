"""What a linter's report says in numbers: shares, lengths, packing, and what to think of them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.batches.rows import measure_fill, pack_rows
from hunyuan_train.data.inspection.lint import LintReport
from hunyuan_train.families.grammar.segments import SPANS

_PERCENTILES = (5, 50, 75, 90, 95, 99)
_LOPSIDED_SHARE = 0.05  # a mode with less than this share of the dialogues is hardly learned
_BOILERPLATE_SHARE = 0.5  # beyond it the loss says more about tags than about answers
_MAX_LABEL_RATIO = 2  # of judged answers, the more frequent label to the other
_LENGTH_BIAS = 0.8  # share of pairs in which the same side is the longer one
_MIN_FILL = 0.95
_MIN_ROWS = 50  # the last row of a few says nothing
_NUM_BINS = 24
_ROW_FILLS = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """Numbers that need a tokenizer."""

    num_samples: int  # that fit
    num_tokens: int
    num_label_tokens: int
    label_share_by_span: dict[str, float]  # think, answer, marker, text; of the label tokens
    growth: float  # tokens of all samples by those of one sample per dialogue
    num_overlong: int  # samples beyond max_seq_length, which no row holds
    percentiles: dict[str, int]  # of the lengths of samples, those beyond included
    longest: int
    max_seq_length: int
    bins: list[tuple[int, int]]  # upper end in tokens, samples; ends double every second bin
    num_rows: int  # packed to max_seq_length
    fill: float  # share of the rows' room that is tokens
    row_bins: list[tuple[float, int]]  # lower end of how full a row is, rows; the fullest first


@dataclass(frozen=True, slots=True, kw_only=True)
class DataStats:
    """Numbers of some data files."""

    num_records: int
    num_used: int
    num_refused: int
    findings: dict[str, dict[str, int]]  # by action, then by kind
    forms: dict[str, int]
    modes: dict[str, int]
    scripts: dict[str, int]
    turns: dict[int, int]  # dialogues by their number of answers
    tokens: TokenStats | None
    advice: list[str]


def summarise(report: LintReport) -> DataStats:
    """The numbers of a report."""
    tokens = _summarise_tokens(report) if report.counts["samples"] else None
    by_action = {action: report.log.by_kind(action) for action in ("error", "drop", "fix", "note")}
    return DataStats(
        num_records=report.counts["records"],
        num_used=report.counts["used"],
        num_refused=report.counts["records"] - report.counts["used"],
        findings={action: kinds for action, kinds in by_action.items() if kinds},
        forms=dict(report.forms.most_common()),
        modes=dict(report.modes.most_common()),
        scripts=dict(report.scripts.most_common()),
        turns=dict(sorted(report.turns.items())),
        tokens=tokens,
        advice=[
            *_advise_on_modes(report.modes),
            *(_advise_on_tokens(tokens) if tokens else []),
            *_advise_on_pairs(report.counts),
            *_advise_on_labels(report.counts),
        ],
    )


def _summarise_tokens(report: LintReport) -> TokenStats:
    counts, lengths = report.counts, report.sample_lengths()
    max_length = report.settings.max_seq_length
    by_span = {span: counts[f"span_{span}"] for span in SPANS[1:]}
    num_labels = sum(by_span.values())
    order = np.random.default_rng(0).permutation(len(lengths))
    rows = pack_rows(lengths, order, max_length=max_length)
    overlong = report.overlong_lengths()
    all_lengths = np.concatenate([lengths, overlong])
    values = np.percentile(all_lengths, _PERCENTILES, method="nearest")
    return TokenStats(
        num_samples=len(lengths),
        num_tokens=int(lengths.sum()),
        num_label_tokens=num_labels,
        label_share_by_span={span: number / num_labels for span, number in by_span.items()},
        growth=counts["tokens_laid_out"] / counts["tokens_once"],
        percentiles={f"p{p}": int(value) for p, value in zip(_PERCENTILES, values, strict=True)},
        num_overlong=len(overlong),
        longest=int(all_lengths.max()),
        max_seq_length=max_length,
        bins=_bin_lengths(all_lengths),
        num_rows=len(rows),
        fill=measure_fill(lengths, rows, max_length),
        row_bins=_bin_rows(np.add.reduceat(lengths[rows.samples], rows.bounds[:-1]) / max_length),
    )


def _bin_rows(fills: npt.NDArray[np.float64]) -> list[tuple[float, int]]:
    """Rows by how full they are."""
    numbers = np.bincount(np.digitize(fills, _ROW_FILLS), minlength=len(_ROW_FILLS))
    return list(zip(_ROW_FILLS, numbers.tolist(), strict=True))


def _bin_lengths(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Samples by length, in bins that grow by the square root of two."""
    ends = np.unique(np.ceil(16 * 2 ** (np.arange(2 * _NUM_BINS) / 2)).astype(np.int64))
    numbers = np.bincount(np.searchsorted(ends, lengths), minlength=len(ends))
    used = np.flatnonzero(numbers)
    bins = slice(int(used[0]), int(used[-1]) + 1)
    return list(zip(ends[bins].tolist(), numbers[bins].tolist(), strict=True))


def _advise_on_modes(modes: Counter[str]) -> list[str]:
    total = sum(modes.values()) - modes["text"]  # dialogues
    if not total:
        return []
    advice = []
    if 0 < modes["plain"] < total:
        share = f"{modes['plain'] / total:.1%} of the dialogues are in neither mode"
        advice.append(f"{share} and teach to leave the tags out; --mode gives them one")
    elif modes["plain"]:
        advice.append("no dialogue is in a mode: the model learns to answer without tags")
    tagged = {mode: modes[mode] for mode in ("fast", "slow") if modes[mode]}
    if len(tagged) == 1 and not modes["mixed"]:
        other = "slow" if "fast" in tagged else "fast"
        advice.append(f"all tagged dialogues are {next(iter(tagged))}: {other} mode may fade")
    elif tagged and min(tagged.values()) < _LOPSIDED_SHARE * total:
        rare = min(tagged, key=lambda mode: tagged[mode])
        advice.append(f"only {tagged[rare] / total:.1%} of the dialogues are {rare}")
    return advice


def _advise_on_pairs(counts: Counter[str]) -> list[str]:
    """Length tells the sides apart: a model then learns to write more, or less, and little else."""
    for side in ("chosen", "rejected"):
        number = counts[f"{side}_longer"]
        if counts["pairs"] and number > _LENGTH_BIAS * counts["pairs"]:
            share = f"{number / counts['pairs']:.0%} of the pairs"
            return [f"{share} have a longer {side} answer: length alone tells the sides apart"]
    return []


def _advise_on_labels(counts: Counter[str]) -> list[str]:
    """Labels of which one is rare; arXiv 2402.01306 balances them by their weights."""
    numbers = {"good": counts["good"], "bad": counts["bad"]}
    total, fewer = sum(numbers.values()), min(numbers.values())
    if not total or fewer * _MAX_LABEL_RATIO >= total - fewer:
        return []
    rare = min(numbers, key=lambda label: numbers[label])
    if not fewer:
        return [f"no answer is labelled {rare}: kto learns from both"]
    share, weight = (
        f"only {fewer / total:.0%} of the answers are labelled {rare}",
        total / fewer - 1,
    )
    setting = "desirable_weight" if rare == "good" else "undesirable_weight"
    return [f"{share}; --{setting} {weight:.2g} gives both labels the same weight"]


def _advise_on_tokens(tokens: TokenStats) -> list[str]:
    advice = []
    marker_share = tokens.label_share_by_span["marker"]
    if marker_share > _BOILERPLATE_SHARE:
        advice.append(
            f"{marker_share:.0%} of the loss is on tags and end tokens; "
            f"watch the loss of the answer span instead of the mean"
        )
    if tokens.fill < _MIN_FILL and tokens.num_rows >= _MIN_ROWS:
        advice.append(
            f"packed rows are {tokens.fill:.1%} full; a larger max_seq_length packs better"
        )
    return advice
