# ruff: noqa: RUF001  # the bars of these markers are wide ones
"""A stand-in for Hy3's tokenizer: the real markers at the real ids, pairs of a small vocabulary.

The real tokenizer.json cannot be had offline. Like it, this one has no token for a carriage return.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hunyuan_train.families.grammar.tokenizer_json import BYTE_NAMES, NEVER_WRITTEN

_NAMES = {
    120000: "<｜hy_begin_of_sentence{}｜>",
    120001: "<｜hy_end▁of▁sentence｜>",
    120002: "<｜hy_pad{}｜>",
    120006: "<｜hy_User{}｜>",
    120007: "<｜hy_Assistant{}｜>",
    120025: "<｜hy_eos{}｜>",
    120029: "<think{}>",
    120030: "</think{}>",
    120031: "<answer>",
    120032: "</answer>",
    120033: "<tool_call{}>",
    120034: "</tool_call{}>",
    120035: "<tool_calls{}>",
    120036: "</tool_calls{}>",
    120037: "<tool_response{}>",
    120038: "</tool_response{}>",
    120039: "/think",
    120040: "/no_think",
    120041: "<tool_responses{}>",
    120042: "</tool_responses{}>",
    120043: "<tool_sep{}>",
    120044: "<｜reasoning_mode{}｜>",
    120066: "<arg_key{}>",
    120067: "</arg_key{}>",
    120068: "<arg_value{}>",
    120069: "</arg_value{}>",
}
TEXTS = ["Hello, world! The weather in Paris is fine today.", "你好,世界", "Привет, как работает"]


def special_ids(suffix: str = ":opensource", **changed: str) -> dict[str, str]:
    """Names of the added tokens by id; some may be changed, by the name without suffix."""
    return {
        str(number): changed.get(name.format(""), name.format(suffix))
        for number, name in _NAMES.items()
    }


def write_stand_in(folder: Path, special_ids: dict[str, str], **settings: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json with these added tokens, by id."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [
        name for byte, name in BYTE_NAMES.items() if byte not in NEVER_WRITTEN and byte != 13
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        {
            "id": int(number),
            "content": name,
            "special": "｜" in name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, name in special_ids.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False))
    return folder
