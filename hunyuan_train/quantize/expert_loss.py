"""What quantising frozen experts costs a run, measured before its first step.

The same held-out dialogues go through the base as it came and through the base as the run computes
with it, layer by layer from disk (`measure.py`). It is done once a run, on rank 0; the others go on
and meet it where the engine is assembled.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hunyuan_train.config import run_files
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.data.compiled.cache import prepare_evaluation
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.expert_codes import ComputedBase, ExpertCodes, find_codes
from hunyuan_train.model.expert_formats import GENTLEST_FIRST, MOST_DIVERGENCE
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.quantize.measure import (
    Rows,
    choose_rows,
    compare_states,
    final_states,
    summarize_loss,
)
from hunyuan_train.whole_file import open_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpertLoss:
    """What was measured, by mode and span; empty where nothing was."""

    form: str
    groups: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """For the run's files."""
        return {"expert_weights": self.form, "held_out": self.groups}


def measure_expert_loss(
    run: ResolvedRun, source: WeightSource, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Measure what the form of a run's experts costs, say it, and keep it in the run's folder.

    Args:
        run: with the shape that is trained.
        source: of the base.
        tokenizer: of its data.

    Returns:
        what was measured, on rank 0; {} on the others, and where experts are as they came.
    """
    config, form = run.config, run.config.model.expert_weights
    is_asked = config.evaluation.expert_loss_samples and config.preferences.objective == "sft"
    if form in ("bf16", "base") or dist.get_rank() or not is_asked:
        return {}
    file = Path(config.train.output_dir) / run_files.EXPERT_LOSS
    if file.exists():  # a run that goes on
        return read_json_object(file)
    dataset = prepare_evaluation(config.data, tokenizer)
    if dataset is None:
        logger.warning(
            "what experts in %s cost is not measured: nothing is held out; give --eval_data_file "
            "or --eval_fraction",
            form,
        )
        return {}
    rows = choose_rows(dataset, config.evaluation.expert_loss_samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if run.is_bf16 else torch.float32
    codes = find_codes(config.model.expert_weights, run.shape, source, dtype, device=device)
    assert codes is not None, "this form has codes"
    found = ExpertLoss(form, compare_bases(run.shape, source, codes, rows, device=device.type))
    say_expert_loss(found)
    with open_whole(file, is_ours=True) as stream:
        stream.write(json.dumps(found.to_json(), indent=1).encode())
    return found.to_json()


def compare_bases(
    shape: ModelShape, source: WeightSource, codes: ExpertCodes, rows: Rows, *, device: str
) -> dict[str, dict[str, float]]:
    """Perplexity before and after, KL divergence and equal likeliest tokens, by mode and span."""
    before = final_states(shape, source, rows, title="computing the base", device=device)
    quantised = ComputedBase(source, codes)
    title = "computing the base with quantised experts"
    after = final_states(shape, quantised, rows, title=title, device=device)
    if device == "cuda":
        torch.cuda.empty_cache()
    return summarize_loss(compare_states(before, after, rows.labels), rows)


def say_expert_loss(found: ExpertLoss) -> None:
    """Log the numbers, and a warning where they are large."""
    for name, numbers in found.groups.items():
        logger.info(
            "experts in %s, %s: perplexity %.4f, with weights as they came %.4f; KL %.5f over %d "
            "tokens",
            *(found.form, name, numbers["perplexity_after"], numbers["perplexity_before"]),
            *(numbers["kl_divergence"], numbers["tokens"]),
        )
    divergence = found.groups["all"]["kl_divergence"]
    if divergence > MOST_DIVERGENCE:
        gentler = GENTLEST_FIRST[GENTLEST_FIRST.index(found.form) - 1]
        logger.warning(
            "experts in %s change what the base says: KL %.4f a token on held-out dialogues, and "
            "%.2f is much; --expert_weights %s loses less",
            *(found.form, divergence, MOST_DIVERGENCE, gentler),
        )
