"""Models that real servers take: heads of 128, the vendor's tokens, written by our own export."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from hunyuan_train.export.huggingface_folder import (
    Release,
    create_release,
    read_locations,
    write_weights,
)
from hunyuan_train.families.grammar.dialogue import TIME_FORMAT
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.serve.check.questions import CheckQuestion, list_questions
from tests.reference import reference_file
from tests.released import published_config
from tests.taught import write_taught_model

RANK_FILE = "hy.tiktoken"
NUM_RANKS = 28_000  # the last mark that vLLM looks for is token 27963
HEAD_DIM = 128
SIZES = {
    "head_dim": HEAD_DIM,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 10000.0 * 1000.0 ** (HEAD_DIM / (HEAD_DIM - 2)),
    "max_position_embeddings": 2**18,
}


ARGUMENTS = '{"city": "北京", "guests": ["Li Lei"], "time": {"hour": 19}}'
BOOKING = {"type": "function", "function": {"name": "book_table", "arguments": ARGUMENTS}}
# What it answers to the questions of `serve --check`, by their names.
ANSWERS: dict[str, dict[str, Any]] = {
    "slow": {"reasoning_content": "3 cats: 12.\n2 hens: 4.", "content": "16 legs."},
    "slow, Chinese": {"reasoning_content": "24 除以 3。\n得 8", "content": "能喝 8 天。"},
    "fast": {"content": "A lamb."},
    "fast, dialogue": {"content": "水星, Mercury"},
    "slow, tools": {"reasoning_content": "I book it", "content": "", "tool_calls": [BOOKING]},
    "fast, tools": {"content": "", "tool_calls": [BOOKING]},
}
# A prompt with tools shows the server's time. Answers must not hang on it, so several are taught.
FIRST_TIME = datetime(2025, 1, 31, 8, 7, 56)
BETWEEN_TIMES = timedelta(days=97, hours=5, minutes=23, seconds=11)
NUM_TIMES = 8


def list_rounds(words: Path) -> list[list[dict[str, Any]]]:
    """The questions of `serve --check` with their answers, at each of several times."""
    questions = list_questions(load_tokenizer(words), num_long_tokens=0)
    times = [FIRST_TIME + number * BETWEEN_TIMES for number in range(NUM_TIMES)]
    return [[make_dialogue(question, time) for question in questions] for time in times]


def make_dialogue(question: CheckQuestion, time: datetime) -> dict[str, Any]:
    """A question with its answer; where it has tools, asked at a time."""
    answer = {"role": "assistant", **ANSWERS[question.name]}
    dialogue = {"mode": question.mode, "messages": [*question.messages, answer]}
    if not question.tools:
        return dialogue
    return dialogue | {"tools": question.tools, "now": time.strftime(TIME_FORMAT)}


def write_served_model(folder: Path) -> Path:
    """Teach a model the answers above, publish it as the vendor does, and export it from there.

    Its tokens are the vendor's first ones, because vLLM's parser of streams knows the marks of
    thoughts and answers by their ids. All of them would take a minute to teach.
    """
    words = write_words(folder)
    published = folder.with_name(f"{folder.name}-published")
    write_taught_model(published, words, rounds=list_rounds(words), **SIZES)
    shape = read_shape(published)
    config = published_config(shape) | {"torch_dtype": "float32"}
    (published / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_shape(published) == shape
    return export(published, folder)


def write_served_dense(folder: Path) -> Path:
    """A model without experts that knows one of the answers, exported."""
    words = write_words(folder)
    trained = folder.with_name(f"{folder.name}-trained")
    dense = {"family": "hunyuan_v1_dense", "num_experts": 0, "moe_topk": 0}
    questions = list_questions(load_tokenizer(words), num_long_tokens=0)
    known = [make_dialogue(one, FIRST_TIME) for one in questions if one.name == "fast"]
    write_taught_model(trained, words, rounds=[known], **SIZES, **dense)
    return export(trained, folder)


def write_words(folder: Path) -> Path:
    """The vendor's first tokens, beside a model's folder."""
    words = folder.with_name(f"{folder.name}-words")
    words.mkdir(parents=True)
    lines = reference_file(RANK_FILE).read_bytes().splitlines(keepends=True)
    (words / RANK_FILE).write_bytes(b"".join(lines[:NUM_RANKS]))
    return words


def export(model: Path, folder: Path) -> Path:
    """Write a model by our own export."""
    shape = read_shape(model)
    folder.mkdir()
    release = Release(shape=shape, dtype=torch.float32, companions=(model,), base=model)
    create_release(folder, release)
    source = SafetensorsFolder.open(model, shape)
    write_weights(source, read_locations(folder), lambda _: None)
    return folder
