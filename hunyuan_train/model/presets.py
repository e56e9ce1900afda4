"""Named model shapes: the released one, and small ones with random weights."""

from dataclasses import replace
from pathlib import Path

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.model.shape import ModelShape, read_shape
from hunyuan_train.shipped import TINY_TOKENIZER

# The released Hunyuan-A13B-Instruct: 80,393,183,232 parameters, 12,747,448,320 of them active.
A13B = ModelShape(
    vocab_size=128167,
    hidden_size=4096,
    intermediate_size=3072,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=64,
    moe_topk=8,
    max_position_embeddings=32768,
    rope_alpha=1000.0,
    pad_token_id=127961,
    eos_token_id=127960,
    eod_token_id=127967,
)

# Small enough for two CPU cores, with every part of the architecture at work.
TINY = replace(
    A13B,
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=16,
    moe_topk=4,
    max_position_embeddings=4096,
    rope_alpha=None,
    initializer_range=0.05,
    pad_token_id=None,
    eos_token_id=None,
    eod_token_id=None,
)

# True expert and head widths of the released model, few layers: kernels see real sizes on one GPU.
TINY_GPU = replace(A13B, num_hidden_layers=4, num_experts=16)

PRESETS = {"tiny": TINY, "tiny-gpu": TINY_GPU, "a13b": A13B}


def resolve_shape(model_name_or_path: str) -> ModelShape:
    """The shape behind `--model_name_or_path`: a preset's, or that of a model folder.

    Raises:
        ConfigError: neither a preset nor a folder with a usable config.json.
    """
    if model_name_or_path in PRESETS:
        return PRESETS[model_name_or_path]
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        raise ConfigError(
            f"model_name_or_path is {model_name_or_path}, which is neither a folder nor one of the "
            f"presets {', '.join(PRESETS)}; give the path of a downloaded model"
        )
    return read_shape(folder)


def tokenizer_folder(config: ModelConfig) -> Path:
    """The tokenizer given, else the model folder's own; presets fall back on the bundled one."""
    if config.tokenizer_name_or_path:
        return Path(config.tokenizer_name_or_path)
    if config.model_name_or_path in PRESETS:
        return TINY_TOKENIZER
    return Path(config.model_name_or_path)


def fit_vocabulary(
    name: str, shape: ModelShape, *, vocab_size: int, pad_id: int, eos_id: int
) -> ModelShape:
    """The shape that is trained with a tokenizer: random weights take its vocabulary.

    Raises:
        ConfigError: the tokenizer has tokens that a model folder's weights do not know.
    """
    if name in PRESETS:
        return replace(
            shape,
            vocab_size=vocab_size,
            pad_token_id=pad_id,
            eos_token_id=eos_id,
            eod_token_id=eos_id,
        )
    if vocab_size > shape.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} tokens and {name} knows {shape.vocab_size}; set "
            "tokenizer_name_or_path to the folder that was published with the model"
        )
    return shape
