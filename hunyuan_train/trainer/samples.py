"""A fast and a slow answer at the end of a run: of the exported model, or of that in the engine."""

from pathlib import Path

import deepspeed

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.dialogue import MODES
from hunyuan_train.data.tokenizer import Tokenizer
from hunyuan_train.model.shape import ModelShape
from hunyuan_train.serve.generate import Sampling, generate, load_model
from hunyuan_train.serve.result import Answer
from hunyuan_train.trainer.generate import generate_dealt_out

MAX_SAMPLED_PARAMETERS = 2 * 10**9  # 4 GB in bf16: one process holds it beside the run
MAX_SAMPLED_TOKENS = 256


def wants_sample_answers(config: RunConfig, shape: ModelShape) -> bool:
    """Whether they are asked for, or take but a moment."""
    if config.train.sample_answers == "auto":
        return is_loaded_whole(config, shape)
    return config.train.sample_answers


def is_loaded_whole(config: RunConfig, shape: ModelShape) -> bool:
    """Whether the export is a whole model, and one that a single process can hold."""
    is_whole = config.train.export and not config.lora.use_lora
    return is_whole and shape.num_parameters < MAX_SAMPLED_PARAMETERS


def answer_split(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    dataset: Dataset,
    tokenizer: Tokenizer,
    shape: ModelShape,
) -> list[Answer]:
    """Sample answers of a model that no process loads as a whole; every rank takes part.

    Adapters' models are such, and large ones, where answers are asked for.
    """
    if not wants_sample_answers(config, shape) or is_loaded_whole(config, shape):
        return []
    prompts = sample_prompts(dataset)
    outputs = generate_dealt_out(
        engine,
        [ids for _, ids in prompts],
        stop_ids=tokenizer.stop_ids,
        max_new_tokens=MAX_SAMPLED_TOKENS,
    )
    return decode_answers(prompts, outputs, tokenizer)


def sample_answers(folder: Path, dataset: Dataset, tokenizer: Tokenizer) -> list[Answer]:
    """Answers of an exported model to the first fast and the first slow training prompt."""
    prompts = sample_prompts(dataset)
    served = load_model(folder)
    sampling = Sampling(max_new_tokens=MAX_SAMPLED_TOKENS, temperature=0)
    outputs = [generate(served, ids, sampling)[0] for _, ids in prompts]
    return decode_answers(prompts, outputs, tokenizer)


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


def decode_answers(
    prompts: list[tuple[str, list[int]]], outputs: list[list[int]], tokenizer: Tokenizer
) -> list[Answer]:
    """Prompts and what the model made of them, as text."""
    return [
        Answer(mode, tokenizer.decode(ids), tokenizer.decode(output))
        for (mode, ids), output in zip(prompts, outputs, strict=True)
    ]
