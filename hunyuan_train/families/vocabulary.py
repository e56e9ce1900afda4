"""Whether a tokenizer is the one that a model's weights were trained with.

Any other one trains, too: it only teaches the wrong rows of the embedding.
"""

from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS, read_shape
from hunyuan_train.families.shape import ModelShape

_CONFIG = "config.json"
_REMEDY = "set tokenizer_name_or_path to the folder that was published with the model"


def check_vocabulary(name: str, shape: ModelShape, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that is not the model's.

    Args:
        name: a preset, whose random weights take any vocabulary, or the folder of a model.
        shape: as its config.json has it.
        tokenizer: in use.

    Raises:
        ConfigError: it is smaller, shifted, or another than the one beside the weights.
    """
    if name in PRESETS:
        return
    _check_ids(name, shape, tokenizer, _REMEDY)
    try:
        own = load_tokenizer(Path(name))
    except DataError:
        return  # weights alone: config.json is all that there is to go by
    if own.content_hash != (tokenizer.extends or tokenizer.content_hash):
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} is not the one in {name}, with which the model "
            "was trained; leave tokenizer_name_or_path out"
        )


def describe_folder(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What its own folder says of a tokenizer that is not read from there, where no model is named.

    Raises:
        ConfigError: a config.json beside it is of another vocabulary.
    """
    folder = tokenizer.folder
    if not (folder / _CONFIG).exists():
        return tokenizer.remarks
    try:
        shape = read_shape(folder)
    except ConfigError as error:
        return (*tokenizer.remarks, f"the tokenizer is not compared with {_CONFIG}: {error}")
    _check_ids(str(folder), shape, tokenizer, "copy the folder that was published with the model")
    return tokenizer.remarks


def _check_ids(name: str, shape: ModelShape, tokenizer: Tokenizer, remedy: str) -> None:
    """Compare what config.json says of the vocabulary: a shifted one has other special tokens."""
    ends = {*tokenizer.end_ids, tokenizer.pad_id}
    stated: dict[str, tuple[Any, set[int]]] = {
        "eos_token_id": (shape.eos_token_id, ends - {tokenizer.pad_id}),
        "eod_token_id": (shape.eod_token_id, ends - {tokenizer.pad_id}),
        "pad_token_id": (shape.pad_token_id, ends),
    }
    given = {field: one for field, one in stated.items() if one[0] is not None}
    for field, (value, known) in given.items():
        ids = value if isinstance(value, list) else [value]
        unnamed = set(range(tokenizer.num_ranks, tokenizer.vocab_size)) - tokenizer.named_ids
        if not set(ids) <= known | unnamed:
            raise ConfigError(
                f"{name}/{_CONFIG} has {field} {value}, which the tokenizer in "
                f"{tokenizer.folder} has for another token (its own are "
                f"{', '.join(map(str, sorted(known)))}), so its ids are shifted; {remedy}"
            )
    is_larger = tokenizer.vocab_size > shape.vocab_size
    if is_larger or (tokenizer.vocab_size < shape.vocab_size and not given):
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} tokens and "
            f"{name}/{_CONFIG} says {shape.vocab_size}; {remedy}"
        )
