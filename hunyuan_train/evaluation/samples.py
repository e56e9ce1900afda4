"""Answers at the end of a run, one of each mode that was taught, of the model in the engine."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import deepspeed

from hunyuan_train.config.declare import Auto
from hunyuan_train.config.run_files import SAMPLES
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.rendering.prompt import find_opening
from hunyuan_train.evaluation.engine_generation import generate_dealt_out
from hunyuan_train.evaluation.show_answer import Answer
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.json_lines import JsonLines

logger = logging.getLogger(__name__)
MAX_PROMPTS = 2
MAX_PROMPT_TOKENS = 2048  # a prompt of 256K tokens would not fit on one rank
MAX_SAMPLED_TOKENS = 256
MAX_SAMPLED_SECONDS = 60.0  # for an answer, however large the model: about 0.1 s a token with 80 B


def answer_at_last(
    wanted: bool | Auto,
    engine: deepspeed.DeepSpeedEngine,
    dataset: Dataset,
    tokenizer: Tokenizer,
) -> list[Answer]:
    """Answers to a training prompt of each mode; every rank takes part.

    Args:
        wanted: false: none; auto: each in a minute at most; true: however long they take.
        engine: with the trained model.
        dataset: of training.
        tokenizer: of the model.
    """
    prompts = sample_prompts(dataset) if wanted else []
    if not prompts:
        return []
    max_seconds = MAX_SAMPLED_SECONDS if wanted == "auto" else None
    logger.info("answering %d prompts of the training data", len(prompts))
    started = time.monotonic()
    outputs = generate_dealt_out(
        engine,
        [ids for _, ids in prompts],
        stop_ids=tokenizer.stop_ids,
        max_new_tokens=MAX_SAMPLED_TOKENS,
        max_seconds=max_seconds,
    )
    is_over_time = max_seconds is not None and time.monotonic() - started > max_seconds
    answers = []
    for (mode, ids), output in zip(prompts, outputs, strict=True):
        text = tokenizer.decode(output)
        parsed = tokenizer.grammar.parse_output(find_opening(ids, tokenizer) + text)
        may_be_cut = is_over_time or len(output) == MAX_SAMPLED_TOKENS
        cut_after = len(output) if may_be_cut and not parsed.is_well_formed else None
        answers.append(Answer(mode, tokenizer.decode(ids), text, parsed, cut_after))
    return answers


def keep_samples(output_dir: Path, answers: Sequence[Answer], step: int) -> None:
    """Leave them in the run's folder, for its page; rank 0 does."""
    lines = JsonLines(output_dir / SAMPLES)
    lines.forget_after(step - 1)
    for answer in answers:
        row = {"step": step, "mode": answer.mode, "prompt": answer.prompt, "output": answer.text}
        is_well_formed = answer.output.is_well_formed
        lines.append(row | {"is_well_formed": is_well_formed, "cut_after": answer.cut_after})


def sample_prompts(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """The first prompt of each mode in the training data that is short enough, with its mode.

    Plain text has no prompts.
    """
    prompts: list[tuple[str, list[int]]] = []
    for number, mode in enumerate(MODES):
        if mode == "text":
            continue
        for sample_id in (dataset.samples["mode"] == number).nonzero()[0]:
            sample = dataset.sample(int(sample_id))
            first_label = int((sample.spans != 0).argmax())
            if first_label <= MAX_PROMPT_TOKENS:
                prompts.append((mode, sample.tokens[:first_label].tolist()))
                break
    return prompts[-MAX_PROMPTS:]
