"""Hy3 and Hy-MT2-30B-A3B: a dense layer first, then layers of routed experts and a shared one.

Against A13B: the router scores by sigmoid, chooses by score plus a bias that no training changes,
and scales the normalised weights; norms of queries and keys come before the rope; dense, routed and
shared parts have widths of their own; the head is not tied. Files may hold one more layer, for
multi-token prediction (MTP), which Transformers' class has no code for: it is carried through.

`enable_moe_fp32_combine` may be either: it decides one rounding of a sum in bfloat16.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from hunyuan_train.families.config_fields import Fields
from hunyuan_train.families.config_numbers import (
    MAX_EXPERTS,
    MAX_EXPERTS_IN_ALL,
    MAX_LAYERS,
    MAX_WIDTH,
    read_common_numbers,
    read_rope,
    refuse_switches,
    write_common_numbers,
)
from hunyuan_train.families.family import Family, MoeBlock, Parsers, Router
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.table_rows import layer_rows, mlp_rows, table_of
from hunyuan_train.families.tensors import EXPERT, Kind, StoredTensor

NAME = "hy_v3"
NORMS = ("q_norm", "k_norm")

# Published switches that Transformers' class has no code for, with the only value it computes.
FIXED_SWITCHES = {
    "qk_norm": True,
    "route_norm": True,
    "moe_router_use_sigmoid": True,
    "moe_router_enable_expert_bias": True,
    "mlp_bias": False,
}
# Transformers' class has other defaults than the rest of this package, and servers have others yet.
REQUIRED = ("head_dim", "num_key_value_heads", "router_scaling_factor", "first_k_dense_replace")


def parse(config: Mapping[str, Any], source: str) -> ModelShape:
    """Read a config.json as published, or as the vendor's tools write it.

    Raises:
        ConfigError: a value that no model has, a switch that the class has no code for, or dense
            layers of which two fields say different things.
        KeyError: a missing field.
    """
    refuse_switches(config, source, fixed=FIXED_SWITCHES, family=NAME)
    fields = Fields(config, source)
    for name in REQUIRED:
        if not fields.is_given(name):
            raise KeyError(name)
    has_alpha = read_rope(fields)[1] is not None
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if has_alpha or not (fields.is_given("rope_theta") or "rope_theta" in rope):
        raise fields.refuse("rope_parameters", "the default rope with its rope_theta")
    numbers = read_common_numbers(fields)
    fields.refuse_difference("num_local_experts", "num_experts")
    fields.refuse_difference("expert_hidden_dim", "moe_intermediate_size")
    num_layers = numbers["num_hidden_layers"]
    num_experts = fields.whole("num_experts", most=MAX_EXPERTS)
    if num_experts * num_layers > MAX_EXPERTS_IN_ALL:
        raise fields.refuse("num_experts", f"at most {MAX_EXPERTS_IN_ALL:,} over all layers")
    width = fields.whole("moe_intermediate_size", most=MAX_WIDTH)
    num_mtp_layers = 0
    if fields.is_given("num_nextn_predict_layers"):
        num_mtp_layers = fields.whole("num_nextn_predict_layers", least=0, most=MAX_LAYERS)
    return ModelShape(
        family=NAME,
        intermediate_size=fields.whole("intermediate_size", most=MAX_WIDTH),
        num_experts=num_experts,
        moe_topk=fields.whole("num_experts_per_tok", most=num_experts),
        moe_intermediate_size=width,
        shared_intermediate_size=width * fields.whole("num_shared_experts", most=MAX_EXPERTS),
        num_dense_layers=_read_dense_layers(fields, num_layers),
        router_scale=fields.number("router_scaling_factor", default=1.0),
        num_mtp_layers=num_mtp_layers,
        **numbers,
    )


def _read_dense_layers(fields: Fields, num_layers: int) -> int:
    """The published field is the servers'; Transformers' class reads only the other one.

    Raises:
        ConfigError: they build different layers.
    """
    num_dense = fields.whole("first_k_dense_replace", least=0, most=num_layers - 1)
    built = fields.values.get("mlp_layer_types") or layer_types(1, num_layers)
    if built != layer_types(num_dense, num_layers):
        raise fields.refuse(
            "first_k_dense_replace",
            "the number of dense layers that Transformers builds from mlp_layer_types (without it, "
            "1), or servers and training would have different layers",
        )
    return num_dense


def layer_types(num_dense: int, num_layers: int) -> list[str]:
    """What Transformers calls the layers."""
    return ["dense"] * num_dense + ["sparse"] * (num_layers - num_dense)


def native_config(shape: ModelShape) -> dict[str, Any]:
    """Fields for Transformers' config class."""
    return write_common_numbers(shape) | {
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.moe_topk,
        "num_shared_experts": shape.shared_intermediate_size // shape.moe_intermediate_size,
        "moe_intermediate_size": shape.moe_intermediate_size,
        "router_scaling_factor": shape.router_scale,
        "mlp_layer_types": layer_types(shape.num_dense_layers, shape.num_hidden_layers),
        "enable_moe_fp32_combine": False,
        "output_router_logits": False,  # it would keep those of all layers
    }


def served_config(shape: ModelShape) -> dict[str, Any]:
    """What servers ask for besides; the MTP layer is there or not as in the weights."""
    return {
        "expert_hidden_dim": shape.moe_intermediate_size,
        "first_k_dense_replace": shape.num_dense_layers,
        "route_norm": True,
        "qk_norm": True,
        "moe_router_use_sigmoid": True,
        "moe_router_enable_expert_bias": True,
        "num_nextn_predict_layers": 0 if shape.leaves_out_mtp else shape.num_mtp_layers,
    }


def table(shape: ModelShape) -> list[StoredTensor]:
    """Every tensor, in the order of Transformers' model; the layers for MTP come last."""
    rows = table_of(shape, partial(_block_rows, shape), norms=NORMS)
    for layer in range(0 if shape.leaves_out_mtp else shape.num_mtp_layers):
        rows += _mtp_rows(shape, shape.num_hidden_layers + layer)
    return rows


def _block_rows(shape: ModelShape, block: str, layer: int) -> list[StoredTensor]:
    if layer < shape.num_dense_layers:
        return mlp_rows(shape, block, Kind.MLP)
    size = (shape.num_experts, shape.hidden_size)
    width, shared = shape.moe_intermediate_size, shape.shared_intermediate_size
    return [
        StoredTensor(f"{block}.router.gate.weight", size, Kind.ROUTER),
        *mlp_rows(shape, f"{block}.experts.{EXPERT}", Kind.EXPERT, width=width),
        StoredTensor(f"{block}.expert_bias", size[:1], Kind.ROUTER_BIAS, is_float32=True),
        *mlp_rows(shape, f"{block}.shared_mlp", Kind.SHARED_EXPERT, width=shared),
    ]


def _mtp_rows(shape: ModelShape, layer: int) -> list[StoredTensor]:
    """A whole layer, with what joins it to the others."""
    hidden, prefix = shape.hidden_size, f"model.layers.{layer}"
    norms = ("enorm", "hnorm", "final_layernorm")
    block = _block_rows(shape, f"{prefix}.mlp", layer)
    return [
        *(replace(row, kind=Kind.EXTRA) for row in layer_rows(shape, prefix, block, norms=NORMS)),
        StoredTensor(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden)),
        *(StoredTensor(f"{prefix}.{name}.weight", (hidden,)) for name in norms),
    ]


# The released Hy3: 295,033,528,320 parameters, 20,675,715,072 of them active, and one MTP layer.
HY3 = ModelShape(
    family=NAME,
    vocab_size=120832,
    hidden_size=4096,
    intermediate_size=13312,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=192,
    moe_topk=8,
    moe_intermediate_size=1536,
    shared_intermediate_size=1536,
    num_dense_layers=1,
    router_scale=2.826,
    num_mtp_layers=1,
    max_position_embeddings=262144,
    rope_theta=11158840.0,
    initializer_range=0.006,
    tie_word_embeddings=False,
    pad_token_id=120002,
    bos_token_id=120000,
    eos_token_id=120025,
    eod_token_id=120026,
)

# The released Hy-MT2-30B-A3B: 30,064,719,872 parameters, 3,451,860,992 of them active.
HY_MT2_30B_A3B = replace(
    HY3,
    hidden_size=2048,
    intermediate_size=6912,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    num_experts=128,
    moe_intermediate_size=768,
    shared_intermediate_size=768,
    num_mtp_layers=0,
)

# Small enough for two CPU cores; every part has a size of its own.
TINY = replace(
    HY3,
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts=16,
    moe_topk=4,
    moe_intermediate_size=96,
    shared_intermediate_size=192,
    num_mtp_layers=0,
    max_position_embeddings=4096,
    initializer_range=0.05,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    eod_token_id=None,
)

HY_V3 = Family(
    name=NAME,
    model_types=(NAME,),
    parse=parse,
    native_config=native_config,
    served_config=served_config,
    table=table,
    presets={"tiny-hy3": TINY, "hy3": HY3, "hy-mt2-30b-a3b": HY_MT2_30B_A3B},
    parsers={  # as the model's card says
        "vllm": Parsers(reasoning="hy_v3", tools="hy_v3"),
        "sglang": Parsers(reasoning="hunyuan", tools="hunyuan"),
    },
    moe=MoeBlock(
        block="mlp",
        router=Router(module="gate", projection="", scores="sigmoid", is_normalised=True),
        experts_class="HYV3Experts",
        shared_expert="shared_experts",
        num_experts_field="num_experts",
        top_k_field="num_experts_per_tok",
    ),
    in_transformers=(
        (".mlp.router.gate.", ".mlp.gate."),
        (".mlp.expert_bias", ".mlp.e_score_correction_bias"),
        (".mlp.shared_mlp.", ".mlp.shared_experts."),
    ),
    in_engine=(
        (".mlp.expert_bias", ".mlp.router.e_score_correction_bias"),
        (".mlp.shared_mlp.", ".mlp.shared_experts."),
    ),
    gguf_vocabularies=("tokenizer.json",),
    carries_config=True,
    # The same projections stand in the first layer, in the shared and in the routed experts; the
    # router is no linear layer.
    peft_by_parameter=(Kind.MLP, Kind.SHARED_EXPERT, Kind.ROUTER),
)
