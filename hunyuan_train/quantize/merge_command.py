"""`hunyuan-train merge` of an adapter into a quantised base: written, measured, and only then kept.

Three models see the dialogues that the adapter was trained on: the base, the base with the adapter
beside it, and the merged folder. What survives is the share of the gain in log-probability.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import set_verbosity_error

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import (
    check_room,
    check_sums,
    hash_files,
    publish_summed,
    unfinished_until_published,
)
from hunyuan_train.export.companions import copy_files, list_other_files
from hunyuan_train.export.lora_deltas import DESCRIPTION, WEIGHTS, Merge, open_merge
from hunyuan_train.export.manifest import write_manifest
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.model.find_model import open_base
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.quantize.inputs import find_inputs
from hunyuan_train.quantize.measure import (
    Rows,
    choose_rows,
    compare_states,
    final_states,
    summarize_survival,
)
from hunyuan_train.quantize.merge_codes import open_changed, write_merged
from hunyuan_train.quantize.model_folder import write_json
from hunyuan_train.quantize.report import find_nonsense, find_undone

logger = logging.getLogger(__name__)
REPORT = "merge_report.json"
REMEDY = (
    "merge into the model in bfloat16 and `quantize` that, keep the adapter beside its base, which "
    "loses nothing, or take the loss with --allow_loss"
)


def merge_and_measure(arguments: argparse.Namespace, output: Path) -> None:
    """Merge, measure and publish.

    Args:
        arguments: of the command.
        output: the final folder.

    Raises:
        CheckpointError: too little survives, or there is nothing to measure with.
    """
    set_verbosity_error()  # it warns of the released RoPE's alpha, which it knows and uses
    merge = open_merge(arguments.base, arguments.adapter, takes_quantised=True)
    rows = find_rows(arguments)
    files = sorted({one.file for one in merge.weights.values()})
    check_room(output, sum(file.stat().st_size for file in files))
    check_sums([*files, *(arguments.adapter / name for name in (WEIGHTS, DESCRIPTION))])
    with unfinished_until_published(output) as unfinished:
        write_merged(merge, unfinished)
        copy_files(list_other_files(arguments.base), unfinished)
        write_manifest(unfinished, arguments.base)
        report: dict[str, Any] = {"format": merge.shape.stored_as, "left_out": {}}
        if rows is not None:
            report["survival"] = measure(merge, unfinished, rows)
        judge(report, is_allowed=arguments.allow_loss)
        write_json(unfinished / REPORT, report)
        publish_summed(output, hash_files(sorted(unfinished.iterdir()), lambda _: None))
    logger.info("merged into %s", output)


def find_rows(arguments: argparse.Namespace) -> Rows | None:
    """Dialogues that the adapter was trained on; None where none are known and none are needed.

    Raises:
        CheckpointError: none are known.
    """
    inputs = find_inputs(
        arguments.adapter, train_data=arguments.train_data, eval_data=None, base=arguments.base
    )
    open_dataset = inputs.train_dataset(load_tokenizer(arguments.base))
    if open_dataset is not None:
        return choose_rows(open_dataset(), arguments.samples)
    if arguments.allow_loss:
        return None
    raise CheckpointError(
        f"base is {arguments.base}, whose weights are quantised, and rounding could undo what "
        f"{arguments.adapter} has learnt; no dialogues are known to measure that on: give those "
        f"that it was trained on with --train_data FILE, or {REMEDY}"
    )


def measure(merge: Merge, folder: Path, rows: Rows) -> dict[str, Any]:
    """How much of what training gained the merged folder keeps, by mode and span."""
    base, changed = open_changed(merge)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sources: dict[str, WeightSource] = {
        "computing the base": base,
        "computing the base with its adapter": changed,
        "computing the merged model": open_base(folder, merge.shape),
    }
    before, tuned, after = (
        final_states(merge.shape, source, rows, title=title, device=device, scratch=folder)
        for title, source in sources.items()
    )
    scores = compare_states(tuned, after, rows.labels)
    untuned = compare_states(tuned, before, rows.labels).after
    return summarize_survival(untuned, scores.before, scores.after, rows)


def judge(report: dict[str, Any], *, is_allowed: bool) -> None:
    """Say what survives, and refuse what has lost too much.

    Raises:
        CheckpointError: naming the share and the remedy.
    """
    for name, numbers in report.get("survival", {}).items():
        share = numbers["survives"]
        logger.info(
            "%s: %.4f nats a token gained in training, of which %s survives merging",
            *(name, numbers["gain"], "an unknown share" if share is None else f"{share:.1%}"),
        )
    if nonsense := find_nonsense(report):
        raise CheckpointError(f"{nonsense}: the base or the adapter computes NaN; nothing was kept")
    if (undone := find_undone(report)) and not is_allowed:
        raise CheckpointError(
            f"only {undone} survives merging into weights stored as {report['format']}, and 95% "
            f"should; {REMEDY}. Nothing was published"
        )
