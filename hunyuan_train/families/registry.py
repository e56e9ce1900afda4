"""The model families, and the models that a user can name: a folder, or a preset."""

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.config_numbers import MAX_VOCABULARY
from hunyuan_train.families.family import Family
from hunyuan_train.families.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from hunyuan_train.families.hy_v3 import HY_V3
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_file import read_json_object

FAMILIES = {family.name: family for family in (HUNYUAN_V1_MOE, HUNYUAN_V1_DENSE, HY_V3)}
# Model types that are known and not trained, and why.
REFUSED = {
    "hy_v4": "Transformers computes its attention in the eager way alone, whose memory grows with "
    "the square of the length; models of hy_v3 and before are trained here"
}
PUBLISHER, MODELSCOPE_PUBLISHER = "tencent", "Tencent-Hunyuan"
RELEASED_NAME = re.compile(r"(?:Hunyuan|Hy3|Hy-MT2)(?:-[\w.-]+)?")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PRESETS = {name: shape for family in FAMILIES.values() for name, shape in family.presets.items()}


def family_of(shape: ModelShape) -> Family:
    """The family that a shape belongs to."""
    return FAMILIES[shape.family]


def parse_shape(config: Mapping[str, Any], *, source: str) -> ModelShape:
    """Turn a config.json of any family into a shape.

    Args:
        config: the parsed config.json.
        source: what an error names, usually the file.

    Raises:
        ConfigError: another architecture, a missing field, or one that Transformers' class cannot
            express.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED:
        raise ConfigError(
            f"{source} has model_type {model_type!r}, which is not trained here: "
            f"{REFUSED[model_type]}"
        )
    known = {spelling: family for family in FAMILIES.values() for spelling in family.model_types}
    if not isinstance(model_type, str) or model_type not in known:
        raise ConfigError(
            f"{source} has model_type {model_type!r}; this project trains Hunyuan models "
            f"({' or '.join(known)})"
        )
    try:
        return known[model_type].parse(config, source)
    except KeyError as missing:
        raise ConfigError(
            f"{source} has no field {missing}; take the config.json published with the model"
        ) from missing


def read_shape(model_folder: Path) -> ModelShape:
    """Read the shape of a model folder.

    Raises:
        ConfigError: no config.json there, not JSON, or see `parse_shape`.
    """
    path = model_folder / "config.json"
    try:
        config = read_json_object(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{model_folder} is no model folder: it holds no config.json; give the path of a "
            "downloaded Hugging Face model"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from error
    return parse_shape(config, source=str(path))


def resolve_shape(model_name_or_path: str, *, carry_mtp: bool = True) -> ModelShape:
    """The shape behind `--model_name_or_path`: a preset's, or that of a model folder.

    Args:
        model_name_or_path: the setting.
        carry_mtp: the setting of this name.

    Raises:
        ConfigError: neither a preset nor a folder with a usable config.json.
    """
    if model_name_or_path in PRESETS:
        return replace(PRESETS[model_name_or_path], leaves_out_mtp=not carry_mtp)
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        raise ConfigError(
            f"model_name_or_path is {model_name_or_path}, which is neither a folder nor one of the "
            f"presets {', '.join(PRESETS)}; {describe_download(model_name_or_path)}"
        )
    return replace(read_shape(folder), leaves_out_mtp=not carry_mtp)


def describe_download(name: str) -> str:
    """How to name a model so that a hub is asked for it."""
    if folder_name := RELEASED_NAME.fullmatch(name):
        name = f"{PUBLISHER}/{folder_name[0]}"
    if not HUB_NAME.fullmatch(name):
        meant = get_close_matches(name.lower(), PRESETS, n=1)
        hint = f"did you mean {meant[0]}? Otherwise " if meant else ""
        return f"{hint}give the path of a downloaded model, or OWNER/NAME of one on a hub"
    owner, folder = name.split("/")
    publisher = MODELSCOPE_PUBLISHER if owner == PUBLISHER else owner
    return (
        f"if a hub has it under this name, give --model_name_or_path hf:{name} or "
        f"modelscope:{publisher}/{folder}, and it is downloaded"
    )


def fit_vocabulary(
    name: str,
    shape: ModelShape,
    *,
    vocab_size: int,
    pad_id: int,
    eos_id: int,
    num_new_tokens: int = 0,
) -> ModelShape:
    """The shape that is trained with a tokenizer: random weights take its vocabulary.

    New tokens take rows that the published vocabulary leaves free behind its tokens. Where these
    are too few, both matrices grow by as many as are missing and not to a round number: each row
    has a share in every probability.

    Raises:
        ConfigError: the tokenizer has tokens that a model folder's weights do not know.
    """
    if num_new_tokens:
        shape = replace(
            shape, num_new_tokens=num_new_tokens, first_new_token=vocab_size - num_new_tokens
        )
    if name in PRESETS:
        return replace(
            shape,
            vocab_size=vocab_size,
            pad_token_id=pad_id,
            eos_token_id=eos_id,
            eod_token_id=eos_id,
        )
    if vocab_size - num_new_tokens > shape.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size - num_new_tokens} tokens and {name} knows "
            f"{shape.vocab_size}; set tokenizer_name_or_path to the folder that was published with "
            "the model"
        )
    if vocab_size > MAX_VOCABULARY:
        raise ConfigError(
            f"add_tokens would make a vocabulary of {vocab_size} tokens, and {MAX_VOCABULARY} is "
            "the most that a model here has; add fewer"
        )
    return replace(shape, vocab_size=max(shape.vocab_size, vocab_size))
