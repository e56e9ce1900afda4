# ruff: noqa: RUF001  # the bars of markers are wide ones
"""A small Hy3 that real servers take, with stand-ins for its vocabulary and its template."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hunyuan_train.families.grammar.find import load_tokenizer
from tests.families.grammar.test_new_tokens import without_gaps
from tests.families.hy_v3_folder import SHAPE, add_mtp_layer, published_config
from tests.serve.served_models import HEAD_DIM, export, list_rounds
from tests.taught import write_taught_model

TEMPLATE = Path(__file__).parents[1] / "families/grammar/hy_v3/chat_template.jinja"
WORDS = {  # of tokenizer_config.json, as vLLM's parsers and Transformers read it
    "tokenizer_class": "PreTrainedTokenizerFast",
    "token_suffix": ":opensource",
    "bos_token": "<｜hy_begin_of_sentence:opensource｜>",
    "eos_token": "<｜hy_eos:opensource｜>",
    "pad_token": "<｜hy_pad:opensource｜>",
}
OF_WORDS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "eod_token_id")
# Three layers, the first of them dense.
SIZES: dict[str, Any] = {
    **{name: value for name, value in asdict(SHAPE).items() if name not in OF_WORDS},
    "head_dim": HEAD_DIM,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2**18,
    "initializer_range": 0.05,
    "num_mtp_layers": 0,
}


def write_served_hy3(folder: Path) -> Path:
    """Teach it the answers of `served_models`, add the MTP layer of the released one, export it."""
    words = without_gaps(folder.with_name(f"{folder.name}-words"), **WORDS)
    published = folder.with_name(f"{folder.name}-published")
    # No prompt shows the time, so each answer is taught at one.
    return export(write_published(published, words, list_rounds(words)[:1]), folder)


def write_published(
    folder: Path, words: Path, rounds: Sequence[Sequence[dict[str, Any]]], **sizes: int
) -> Path:
    """Teach one, and write it as the vendor does: config.json, template, and an MTP layer."""
    shutil.copyfile(TEMPLATE, words / TEMPLATE.name)
    write_taught_model(folder, words, rounds=rounds, **SIZES | sizes)
    tokenizer = load_tokenizer(words)
    shape = replace(
        SHAPE,
        **SIZES | sizes | {"num_mtp_layers": 1},
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
        bos_token_id=None,
        eod_token_id=None,
    )
    config = published_config(shape) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    add_mtp_layer(folder, shape)
    return folder
