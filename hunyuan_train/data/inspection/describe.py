"""What a run says about its data before it starts."""

from collections.abc import Mapping

import numpy as np

from hunyuan_train.data.dataset import Dataset, DataSummary
from hunyuan_train.data.findings import list_fields
from hunyuan_train.data.inspection.show import write_sample
from hunyuan_train.families.grammar.tokenizer import Tokenizer

_HISTORY = {
    "strip": "strip: one sample per answer, earlier answers without thoughts, loss on that answer",
    "keep": "keep: one sample per dialogue, earlier answers as written, loss on every answer",
}
_NUM_LOOKED_AT = 1000  # samples among which one with several answers is looked for
_MAX_PART = 200  # characters of each stretch of a sample, enough to see how it is laid out


def describe_dataset(dataset: Dataset, history: str, tokenizer: Tokenizer) -> dict[str, str]:
    """What it holds, how dialogues became samples, what was found, and one sample."""
    lines = {
        "history": f"{_HISTORY[history]}; {dataset.summary.growth:.2f} times the tokens of one "
        "sample per dialogue",
        "found": describe_findings(dataset.summary),
        "sample": _describe_sample(dataset, tokenizer),
    }
    return {name: line for name, line in lines.items() if line}


def describe_counts(summary: DataSummary) -> str:
    """Samples by mode, answers, tokens."""
    modes = {"fast": summary.num_fast, "slow": summary.num_slow, "plain": summary.num_plain}
    modes["text"] = summary.num_text
    counted = ", ".join(f"{count:,} {mode}" for mode, count in modes.items() if count)
    return (
        f"{summary.num_samples:,} samples ({counted}), {summary.num_turns:,} turns, "
        f"{summary.num_tokens:,} tokens, {summary.num_label_tokens:,} of them trained on"
    )


def describe_findings(summary: DataSummary) -> str:
    """What was left out, fixed or only noted; "" where nothing was found."""
    noted = {
        kind: count - summary.num_fixed.get(kind, 0) - summary.num_dropped.get(kind, 0)
        for kind, count in summary.num_findings.items()
    }
    num_typed = noted.pop("special_tokens", 0)
    parts = [
        f"{num_typed:,} record(s) with typed special tokens, which stay text" if num_typed else "",
        _list_kinds("fixed", summary.num_fixed),
        _list_kinds("left out", summary.num_dropped),
        _list_kinds("noted", noted, summary.noted_fields),
    ]
    return "; ".join(part for part in parts if part)


def _list_kinds(
    word: str, counts: Mapping[str, int], fields: Mapping[str, Mapping[str, int]] | None = None
) -> str:
    named = {kind: list_fields(names) for kind, names in (fields or {}).items()}
    listed = ", ".join(
        f"{kind} {count:,} ({named[kind]})" if named.get(kind) else f"{kind} {count:,}"
        for kind, count in counts.items()
        if count
    )
    return f"{word}: {listed}" if listed else ""


def _describe_sample(dataset: Dataset, tokenizer: Tokenizer) -> str:
    """An early sample that shows what becomes of earlier answers, or else the first one."""
    for number in range(min(len(dataset), _NUM_LOOKED_AT)):
        if np.count_nonzero(dataset.sample(number).tokens == tokenizer.eos_id) > 1:
            break
    else:
        number = 0
    text = write_sample(dataset.sample(number), tokenizer, max_part=_MAX_PART)
    return f"{dataset.origin(number)}, loss on [[ ]]: {text}"
