"""Models that real servers take: heads of 128, the vendor's tokens, written by our own export."""

import json
from pathlib import Path

import torch

from hunyuan_train.export.huggingface_folder import (
    Release,
    create_release,
    read_locations,
    write_weights,
)
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model.weights import SafetensorsFolder
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


def write_served_model(folder: Path) -> Path:
    """Teach a model three dialogues, publish it as the vendor does, and export it from there.

    Its tokens are the vendor's first ones, because vLLM's parser of streams knows the marks of
    thoughts and answers by their ids. All of them would take a minute to teach.
    """
    words = folder.with_name(f"{folder.name}-words")
    words.mkdir(parents=True)
    lines = reference_file(RANK_FILE).read_bytes().splitlines(keepends=True)
    (words / RANK_FILE).write_bytes(b"".join(lines[:NUM_RANKS]))
    published = folder.with_name(f"{folder.name}-published")
    write_taught_model(published, words, **SIZES)
    shape = read_shape(published)
    config = published_config(shape) | {"torch_dtype": "float32"}
    (published / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_shape(published) == shape
    folder.mkdir()
    release = Release(shape=shape, dtype=torch.float32, companions=(published,), base=published)
    create_release(folder, release)
    source = SafetensorsFolder.open(published, shape)
    write_weights(source, read_locations(folder), lambda _: None)
    return folder
