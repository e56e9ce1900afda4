"""The dense Hunyuan models (0.5B to 7B): the layers of A13B with one MLP in place of experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hunyuan_train.families.config_fields import Fields
from hunyuan_train.families.config_numbers import (
    MAX_WIDTH,
    read_common_numbers,
    refuse_switches,
    write_common_numbers,
)
from hunyuan_train.families.family import Family
from hunyuan_train.families.hunyuan_v1_moe import PARSERS, TINY
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.table_rows import mlp_rows, table_of
from hunyuan_train.families.tensors import Kind, StoredTensor

NAME = "hunyuan_v1_dense"

# Published switches that Transformers' class has no code for, with the only value it computes.
FIXED_SWITCHES = {
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "norm_type": "rms",
    "use_cla": False,
    "mlp_bias": False,
    "position_embedding_xdrope": False,
}


def parse(config: Mapping[str, Any], source: str) -> ModelShape:
    """Read a config.json, as published or as Transformers writes it.

    Raises:
        ConfigError: a value that no model has, or a switch that the class has no code for.
    """
    refuse_switches(config, source, fixed=FIXED_SWITCHES, family=NAME)
    fields = Fields(config, source)
    width = fields.whole("intermediate_size", most=MAX_WIDTH)
    return ModelShape(family=NAME, intermediate_size=width, **read_common_numbers(fields))


def served_config(_: ModelShape) -> dict[str, Any]:
    """What vLLM takes from any Hunyuan config."""
    return {"use_qk_norm": True}


def table(shape: ModelShape) -> list[StoredTensor]:
    """Every tensor, in the order of Transformers' model."""
    return table_of(shape, lambda block, _: mlp_rows(shape, block, Kind.MLP))


# The released sizes. All tie the head to the embedding; 7B has the tokenizer of A13B.
HUNYUAN_7B = ModelShape(  # 7,504,568,320 parameters
    family=NAME,
    vocab_size=128167,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=262144,
    rope_theta=10000.0 * 1000.0 ** (128 / 126),  # published as 10,000 with an alpha of 1,000
    pad_token_id=127961,
    bos_token_id=127958,
    eos_token_id=127960,
)
HUNYUAN_4B = replace(  # 4,221,757,440 parameters
    HUNYUAN_7B,
    vocab_size=120818,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=36,
    pad_token_id=120002,
    bos_token_id=120000,
    eos_token_id=120020,
)
HUNYUAN_1_8B = replace(  # 1,791,080,448 parameters
    HUNYUAN_4B,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=4,
)
HUNYUAN_0_5B = replace(  # 539,010,048 parameters
    HUNYUAN_4B,
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=24,
    num_attention_heads=16,
)

HUNYUAN_V1_DENSE = Family(
    name=NAME,
    model_types=(NAME,),
    parse=parse,
    native_config=write_common_numbers,
    served_config=served_config,
    table=table,
    presets={
        "tiny-dense": replace(TINY, family=NAME, num_experts=0, moe_topk=0),
        "hunyuan-7b": HUNYUAN_7B,
        "hunyuan-4b": HUNYUAN_4B,
        "hunyuan-1.8b": HUNYUAN_1_8B,
        "hunyuan-0.5b": HUNYUAN_0_5B,
    },
    parsers=PARSERS,
    gguf_vocabularies=("hy.tiktoken", "tokenizer.json"),
)
