"""Hunyuan-A13B and its like: 64 routed experts, of which 8 act, and a shared one in every layer.

Two dialects of config.json exist: the published one (`model_type: hunyuan`, per-layer lists,
`attention_head_dim`) and Transformers' native one (`model_type: hunyuan_v1_moe`). What the native
class cannot express (layers that differ, more than one shared expert) is refused, never ignored.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.config_fields import Fields
from hunyuan_train.families.config_numbers import (
    MAX_EXPERTS,
    MAX_EXPERTS_IN_ALL,
    MAX_WIDTH,
    read_common_numbers,
    refuse_switches,
    write_common_numbers,
)
from hunyuan_train.families.family import Family, MoeBlock, Parsers, Router
from hunyuan_train.families.shape import LONG_CONTEXT, ModelShape
from hunyuan_train.families.table_rows import mlp_rows, table_of
from hunyuan_train.families.tensors import EXPERT, Kind, StoredTensor

NAME = "hunyuan_v1_moe"
PARSERS = {  # the dense models write as this one does
    "vllm": Parsers(reasoning="hunyuan_a13b", tools="hunyuan_a13b"),
    "sglang": Parsers(reasoning="hunyuan"),  # its parser of calls by this name is Hy3's
}

# Published switches the native class has no code for, with the only value it computes.
FIXED_SWITCHES = {
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "norm_topk_prob": True,
    "norm_type": "rms",
    "use_cla": False,
    "use_mla": False,
    "mlp_bias": False,
    "moe_layer_num_skipped": 0,
    "group_limited_greedy": False,
    "position_embedding_xdrope": False,
    "routed_scaling_factor": 1.0,
}


def parse(config: Mapping[str, Any], source: str) -> ModelShape:
    """Read a config.json of either dialect.

    Raises:
        ConfigError: layers that differ, a value that no model has, or a switch that the native
            class has no code for.
    """
    fields = Fields(config, source)
    flat = dict(config)
    if fields.is_given("num_shared_expert"):
        flat["num_shared_expert"] = fields.uniform("num_shared_expert", most=MAX_EXPERTS)
    fixed = FIXED_SWITCHES | {"num_shared_expert": 1}
    refuse_switches(flat, source, fixed=fixed, family=NAME)
    fields.refuse_difference("num_local_experts", "num_experts")
    fields.refuse_difference("num_experts_per_tok", "moe_topk")
    numbers = read_common_numbers(fields)
    num_experts = fields.uniform("num_experts", most=MAX_EXPERTS)
    if num_experts * numbers["num_hidden_layers"] > MAX_EXPERTS_IN_ALL:
        raise fields.refuse("num_experts", f"at most {MAX_EXPERTS_IN_ALL:,} over all layers")
    return ModelShape(
        family=NAME,
        intermediate_size=_read_expert_width(fields),
        num_experts=num_experts,
        moe_topk=fields.uniform("moe_topk", most=num_experts),
        **numbers,
    )


def _read_expert_width(fields: Fields) -> int:
    """`moe_intermediate_size` wins in the published model; the native class reads the other."""
    width = fields.whole("intermediate_size", most=MAX_WIDTH)
    if not fields.is_given("moe_intermediate_size"):
        return width
    routed = fields.uniform("moe_intermediate_size", most=MAX_WIDTH)
    if routed != width:
        raise ConfigError(
            f"{fields.source} has moe_intermediate_size {routed} and intermediate_size {width}; "
            "the native class has one width for routed and shared experts"
        )
    return width


def native_config(shape: ModelShape) -> dict[str, Any]:
    """Fields for Transformers' config class."""
    experts = {"num_experts": shape.num_experts, "moe_topk": shape.moe_topk}
    return write_common_numbers(shape) | experts


def served_config(shape: ModelShape) -> dict[str, Any]:
    """Fields that servers take from any Hunyuan MoE config.

    Three numbers stand once a layer, as published: llama.cpp's converter reads nothing else, and
    Transformers and vLLM read both.
    """
    per_layer = {
        "moe_topk": shape.moe_topk,
        "moe_intermediate_size": shape.intermediate_size,
        "num_shared_expert": 1,
    }
    return {
        **{name: [value] * shape.num_hidden_layers for name, value in per_layer.items()},
        "norm_topk_prob": True,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
    }


def table(shape: ModelShape) -> list[StoredTensor]:
    """Every tensor, in the order of Transformers' model."""
    size = (shape.num_experts, shape.hidden_size)
    return table_of(
        shape,
        lambda block, _: [
            StoredTensor(f"{block}.gate.wg.weight", size, Kind.ROUTER, is_float32=True),
            *mlp_rows(shape, f"{block}.experts.{EXPERT}", Kind.EXPERT),
            *mlp_rows(shape, f"{block}.shared_mlp", Kind.SHARED_EXPERT),
        ],
    )


# The released Hunyuan-A13B-Instruct: 80,393,183,232 parameters, 12,747,448,320 of them active.
A13B = ModelShape(
    family=NAME,
    vocab_size=128167,
    hidden_size=4096,
    intermediate_size=3072,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=64,
    moe_topk=8,
    max_position_embeddings=LONG_CONTEXT,
    rope_theta=10000.0 * 1000.0 ** (128 / 126),  # published as 10,000 with an alpha of 1,000
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
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    num_experts=16,
    moe_topk=4,
    max_position_embeddings=4096,
    rope_theta=10000.0,
    initializer_range=0.05,
    pad_token_id=None,
    eos_token_id=None,
    eod_token_id=None,
)

# True expert and head widths of the released model, few layers: kernels see real sizes on one GPU.
TINY_GPU = replace(A13B, num_hidden_layers=4, num_experts=16)

HUNYUAN_V1_MOE = Family(
    name=NAME,
    model_types=("hunyuan", NAME),
    parse=parse,
    native_config=native_config,
    served_config=served_config,
    table=table,
    presets={"tiny": TINY, "tiny-gpu": TINY_GPU, "a13b": A13B},
    parsers=PARSERS,
    moe=MoeBlock(
        block="mlp",
        router=Router(module="gate", projection="wg", scores="softmax", is_normalised=True),
        experts_class="HunYuanMoEV1Experts",
        shared_expert="shared_mlp",
        num_experts_field="num_experts",
        top_k_field="moe_topk",
    ),
    in_engine=(
        (".mlp.gate.wg.", ".mlp.router.gate."),
        (".mlp.shared_mlp.", ".mlp.shared_experts."),
    ),
    gguf_vocabularies=("hy.tiktoken",),
    # PEFT 0.21 sends gate_proj, up_proj and down_proj of this model type to the routed experts.
    peft_by_parameter=(Kind.SHARED_EXPERT,),
)
