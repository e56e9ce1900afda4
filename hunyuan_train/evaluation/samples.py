"""A fast and a slow answer at the end of a run, of the model in the engine."""

import logging
from collections.abc import Sequence
from pathlib import Path

import deepspeed

from hunyuan_train.config.run_files import SAMPLES
from hunyuan_train.config.schema import EvaluationConfig
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.evaluation.engine_generation import generate_dealt_out
from hunyuan_train.evaluation.show_answer import Answer
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.json_lines import JsonLines

logger = logging.getLogger(__name__)
MAX_SAMPLED_PARAMETERS = 2 * 10**9  # whose answers take but a moment
MAX_SAMPLED_TOKENS = 256


def wants_sample_answers(config: EvaluationConfig, shape: ModelShape) -> bool:
    """Whether they are asked for, or take but a moment."""
    if config.sample_answers == "auto":
        return count_parameters(shape).total < MAX_SAMPLED_PARAMETERS
    return config.sample_answers


def sample_answers(
    engine: deepspeed.DeepSpeedEngine, dataset: Dataset, tokenizer: Tokenizer
) -> list[Answer]:
    """Answers to the first fast and the first slow training prompt; every rank takes part."""
    prompts = sample_prompts(dataset)
    logger.info("answering %d prompts of the training data", len(prompts))
    outputs = generate_dealt_out(
        engine,
        [ids for _, ids in prompts],
        stop_ids=tokenizer.stop_ids,
        max_new_tokens=MAX_SAMPLED_TOKENS,
    )
    parse = tokenizer.grammar.parse_output
    texts = [tokenizer.decode(output) for output in outputs]
    return [
        Answer(mode, tokenizer.decode(ids), text, parse(text))
        for (mode, ids), text in zip(prompts, texts, strict=True)
    ]


def keep_samples(output_dir: Path, answers: Sequence[Answer], step: int) -> None:
    """Leave them in the run's folder, for its page; rank 0 does."""
    lines = JsonLines(output_dir / SAMPLES)
    lines.forget_after(step - 1)
    for answer in answers:
        row = {"mode": answer.mode, "prompt": answer.prompt, "output": answer.text}
        lines.append({"step": step, **row})


def sample_prompts(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """The first fast and the first slow prompt of the training data, each with its mode."""
    modes = dataset.samples["mode"].tolist()
    prompts = []
    for mode in ("fast", "slow"):
        if MODES.index(mode) in modes:
            sample = dataset.sample(modes.index(MODES.index(mode)))
            first_label = int((sample.spans != 0).argmax())
            prompts.append((mode, sample.tokens[:first_label].tolist()))
    return prompts
