"""The files of a tokenizer, as clients load them with and without the vendor's code.

The vendor publishes ranks and Python code. Without trust in that code no client had a tokenizer, so
tokenizer.json is made from the ranks. The code stays beside it: llama.cpp's converter asks it.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.export.served_config import write_json
from hunyuan_train.families.grammar.new_tokens import FILE as NEW_TOKENS
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
    write_new_tokens(folder, words.new_tokens)
    if (folder / FAST).exists():
        add_to_fast_tokenizer(folder / FAST, words.new_tokens)
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
    special = [
        AddedToken(one, special=True, normalized=True)
        for one in words.special_tokens
        if one not in words.new_tokens
    ]
    fast.add_special_tokens(special)
    fast.add_tokens([AddedToken(one, normalized=True) for one in words.new_tokens])
    return fast


def write_new_tokens(folder: Path, new_tokens: Mapping[str, int] | None) -> None:
    """Keep which tokens were added, for training, merging and answers from this folder."""
    if new_tokens:
        write_json(folder / NEW_TOKENS, new_tokens)


def add_to_fast_tokenizer(path: Path, new_tokens: Mapping[str, int]) -> None:
    """Add tokens to a tokenizer.json that lacks them, under the ids that they have.

    Raises:
        CheckpointError: `tokenizers` would read other ids from it, as it counts on from the last.
    """
    content = json.loads(path.read_bytes())
    known = {one["content"] for one in content["added_tokens"]}
    added = {token: one for token, one in new_tokens.items() if token not in known}
    if not added:
        return
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    content["added_tokens"] += [
        {"id": one, "content": token, **flags, "normalized": True} for token, one in added.items()
    ]
    text = json.dumps(content, ensure_ascii=False, indent=2)
    read = FastTokenizer.from_str(text)
    before = {one["content"]: one["id"] for one in content["added_tokens"]}
    if wrong := [token for token, one in before.items() if read.token_to_id(token) != one]:
        raise CheckpointError(
            f"{path} leaves ids out, so that clients would number {wrong[0]!r} as "
            f"{read.token_to_id(wrong[0])} and not as {before[wrong[0]]}; give the file that was "
            "published with the model"
        )
    path.write_text(text + "\n", encoding="utf-8")


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
