"""Models that real servers take: heads of 128, a long context, written by our own export."""

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
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.taught import write_taught_model

SIZES = {
    "head_dim": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_alpha": 1000.0,
    "max_position_embeddings": 32768,
}


def write_served_model(folder: Path) -> Path:
    """Teach a model three dialogues and export it."""
    taught = write_taught_model(folder.with_name(f"{folder.name}-taught"), **SIZES)
    shape = read_shape(taught)
    folder.mkdir()
    create_release(folder, Release(shape=shape, dtype=torch.float32, companions=(TINY_TOKENIZER,)))
    source = SafetensorsFolder.open(taught, shape)
    write_weights(source, read_locations(folder), lambda _: None)
    return folder
