"""What llama.cpp needs of a model folder, known by its headers and without torch."""

from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.released_files import weight_files
from hunyuan_train.model.safetensors_header import read_header

RANK_FILE, TOKENIZER_FILE = "hy.tiktoken", "tokenizer.json"
# For which llama.cpp has a graph, and its converter was seen to take what we write.
FAMILIES = ("hunyuan_v1_moe", "hunyuan_v1_dense")
READ_BY_RANKS = "hunyuan_v1_moe"  # whose converter reads ranks and nothing else


def check_source(folder: Path, shape: ModelShape) -> None:
    """Refuse a model that the converter would stop at, or that llama.cpp could not load.

    Raises:
        ConfigError: naming it, and what to do.
        DataError: its vocabulary is damaged.
    """
    if shape.family not in FAMILIES:
        raise ConfigError(
            f"{folder} is of the family {shape.family}; format gguf is for {' and '.join(FAMILIES)}"
        )
    if shape.attention_bias:
        raise ConfigError(
            f"{folder} has attention_bias true, and llama.cpp has no bias of the output projection "
            "in this architecture; serve the model with vLLM or SGLang"
        )
    kind = find_vocabulary(folder)
    if kind is None or (kind == TOKENIZER_FILE and shape.family == READ_BY_RANKS):
        is_moe = shape.family == READ_BY_RANKS
        needed = RANK_FILE if is_moe else f"{RANK_FILE} and no {TOKENIZER_FILE}"
        raise ConfigError(
            f"{folder} holds no {needed}, from which llama.cpp's converter takes the vocabulary; "
            "copy it there from the model it was made from"
        )
    if kind == RANK_FILE and load_tokenizer(folder).vocab_size > shape.vocab_size:
        raise ConfigError(
            f"{folder}/{RANK_FILE} has {load_tokenizer(folder).vocab_size} tokens and its model "
            f"knows {shape.vocab_size}; copy the file there that was published with the model"
        )


def find_vocabulary(folder: Path) -> str | None:
    """The file that holds the vocabulary: ranks, where there are any; None without one."""
    return next((one for one in (RANK_FILE, TOKENIZER_FILE) if (folder / one).is_file()), None)


def has_fused_experts(folder: Path, shape: ModelShape) -> bool:
    """Whether the experts of a layer are stored as one tensor, which the converter cannot read."""
    fused = {one.name for one in model_parameters(shape) if one.kind is Kind.EXPERT}
    return any(fused & read_header(file).keys() for file in weight_files(folder))
