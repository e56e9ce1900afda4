"""The files of a tokenizer, as clients load them with and without the vendor's code.

The vendor publishes ranks and Python code. Without trust in that code no client had a tokenizer, so
tokenizer.json is made from the ranks. The code stays beside it: llama.cpp's converter asks it.
"""

import logging
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from hunyuan_train.export.served_config import write_json
from hunyuan_train.families.grammar.template_files import (
    CONFIG,
    TEMPLATE,
    has_other_template,
    read_if_whole,
)
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.grammar.tokenizer_json import BYTE_NAMES
from hunyuan_train.families.shape import ModelShape

logger = logging.getLogger(__name__)

FAST = "tokenizer.json"
FAST_CLASS = "PreTrainedTokenizerFast"  # under this name in Transformers 4 and 5


def complete_tokenizer(folder: Path, words: Tokenizer, shape: ModelShape) -> None:
    """Add to a folder with a tokenizer's files what clients without the vendor's code read.

    A vocabulary whose grammar has no template of ours was published with all of that.

    Args:
        folder: to be published, with the files of the base.
        words: the tokenizer that these files hold.
        shape: of the model.
    """
    if not words.grammar.chat_template:
        return
    if not (folder / FAST).exists():
        logger.info("making %s of the ranks of %s", FAST, words.folder)
        build_fast_tokenizer(words).save(str(folder / FAST))
    found = read_if_whole(folder / CONFIG)
    config = found if isinstance(found, dict) else {}
    if has_other_template(folder, words.grammar):
        logger.warning(
            "the chat template of the base is exported as it is, and is not the one that dialogues "
            "are written by in training; servers that use it may write other prompts"
        )
    else:
        config.pop("chat_template", None)
        (folder / TEMPLATE).write_text(words.grammar.chat_template, encoding="utf-8")
    write_json(folder / CONFIG, _describe_tokenizer(folder, config, words, shape))


def _describe_tokenizer(
    folder: Path, config: dict[str, Any], words: Tokenizer, shape: ModelShape
) -> dict[str, Any]:
    """Fields of tokenizer_config.json: those of the base, and what it lacks."""
    defaults = {
        "model_max_length": shape.context_length,
        "clean_up_tokenization_spaces": False,
        "eos_token": words.grammar.controls.end,
        "pad_token": words.grammar.controls.pad,
    }
    described = defaults | config | {"tokenizer_class": FAST_CLASS}
    code = {f"{name.partition('.')[0]}.py" for name in _list_classes(config.get("auto_map"))}
    if not all((folder / name).exists() for name in code):
        described.pop("auto_map")  # the class that it names would be looked for, and not be there
    return described


def _list_classes(auto_map: object) -> list[str]:
    """The classes that `auto_map` says lie in the folder, as module.Class."""
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    listed = named if isinstance(named, list) else [named]
    return [name for name in listed if isinstance(name, str) and "--" not in name]  # no hub's


def build_fast_tokenizer(words: Tokenizer) -> FastTokenizer:
    """A `tokenizers` tokenizer with the same ids for every text.

    Ranks merge any two neighbours that form a token, so every split of every token is a merge; and
    a word that is a token is one, however its merges would go.
    """
    ranks = {words.token_bytes(rank): rank for rank in range(words.num_ranks)}
    splits = [
        (ranks[token], ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges = [(write_bytes(left), write_bytes(right)) for *_, left, right in sorted(splits)]
    vocabulary = {write_bytes(token): rank for token, rank in ranks.items()}
    fast = FastTokenizer(BPE(vocabulary, merges, ignore_merges=True))
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = split_text(words.split_pattern)
    fast.decoder = decoders.ByteLevel()
    # Normalised like the text: the vendor's code looks for special tokens after NFC, which can take
    # the last character of one away (> and a combining stroke are one character).
    special = [AddedToken(one, special=True, normalized=True) for one in words.special_tokens]
    fast.add_special_tokens(special)
    return fast


def split_text(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut text where a pattern says, and write its bytes as characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write_bytes(token: bytes) -> str:
    """A token in the alphabet of byte-level BPE."""
    return "".join(BYTE_NAMES[byte] for byte in token)
