"""What llama.cpp needs of a model folder, known by its headers and without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import FAMILIES, family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.released_files import weight_files
from hunyuan_train.model.safetensors_header import read_header

RANK_FILE, TOKENIZER_FILE = "hy.tiktoken", "tokenizer.json"
# llama.cpp's names of how a text is split before its pairs are merged. Those of ranks have no file
# that says it; those of a tokenizer.json are known by its expressions. The three are of Hy3, Hy-MT2
# and the small dense models (llama.cpp's src/llama-vocab.cpp).
PRE_TOKENIZER_OF_RANKS = "hunyuan"
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "hunyuan-dense",
}


def check_source(folder: Path, shape: ModelShape) -> None:
    """Refuse a model that the converter would stop at, or that llama.cpp could not load.

    Raises:
        ConfigError: naming it, and what to do.
        DataError: its vocabulary is damaged.
    """
    readable = family_of(shape).gguf_vocabularies
    if not readable:
        known = [name for name, family in FAMILIES.items() if family.gguf_vocabularies]
        raise ConfigError(
            f"{folder} is of the family {shape.family}, which llama.cpp does not have; format gguf "
            f"is for {', '.join(known)}"
        )
    if shape.attention_bias:
        raise ConfigError(
            f"{folder} has attention_bias true, and llama.cpp has no bias of the output projection "
            "in this architecture; serve the model with vLLM or SGLang"
        )
    kind = find_vocabulary(folder, shape)
    if kind is None:
        raise ConfigError(
            f"{folder} holds no {' and no '.join(readable)}, from which llama.cpp's converter "
            f"takes the vocabulary of {shape.family}; copy it there from the model it was made from"
        )
    if kind == RANK_FILE and load_tokenizer(folder).vocab_size > shape.vocab_size:
        raise ConfigError(
            f"{folder}/{RANK_FILE} has {load_tokenizer(folder).vocab_size} tokens and its model "
            f"knows {shape.vocab_size}; copy the file there that was published with the model"
        )


def find_vocabulary(folder: Path, shape: ModelShape) -> str | None:
    """The file that the converter is given for the vocabulary; None if the folder has none."""
    readable = family_of(shape).gguf_vocabularies
    return next((one for one in readable if (folder / one).is_file()), None)


def find_pre_tokenizer(folder: Path, shape: ModelShape) -> str:
    """How llama.cpp splits texts for a folder's vocabulary; "" where only its converter may know.

    The converter recognises released vocabularies by the tokens of a text. Any other it refuses.
    """
    if find_vocabulary(folder, shape) == RANK_FILE:
        return PRE_TOKENIZER_OF_RANKS
    described = read_json_object(folder / TOKENIZER_FILE).get("pre_tokenizer") or {}
    return PRE_TOKENIZERS.get(tuple(_list_expressions(described)), "")


def _list_expressions(described: Mapping[str, Any]) -> list[str]:
    """What a pre-tokenizer splits by, one after the other."""
    steps = described.get("pretokenizers", [described])
    patterns = [step.get("pattern", {}) for step in steps if step.get("type") == "Split"]
    return [str(pattern.get("Regex", pattern)) for pattern in patterns]


def has_fused_experts(folder: Path, shape: ModelShape) -> bool:
    """Whether the experts of a layer are stored as one tensor, which the converter cannot read."""
    fused = {one.name for one in model_parameters(shape) if one.kind is Kind.EXPERT}
    return any(fused & read_header(file).keys() for file in weight_files(folder))
