"""The shape of the released model, to the last parameter, and what cannot be trained."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY
from hunyuan_train.families.registry import (
    PRESETS,
    family_of,
    parse_shape,
    read_shape,
    resolve_shape,
)
from hunyuan_train.families.tables import count_parameters, released_tensors
from hunyuan_train.families.tensors import CARRIED
from hunyuan_train.model.build import (
    build_model,
    compute_rope_in_float32,
    model_class,
    native_config,
)
from tests.reference import reference_file

PUBLISHED = {
    "model_type": "hunyuan",
    "vocab_size": 128167,
    "hidden_size": 4096,
    "intermediate_size": 3072,
    "moe_intermediate_size": [3072] * 32,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_head_dim": 128,
    "num_experts": 64,
    "moe_topk": [8] * 32,
    "num_shared_expert": [1] * 32,
    "use_mixed_mlp_moe": True,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    "tie_word_embeddings": True,
    "pad_token_id": 127961,
    "eos_token_id": 127960,
    "eod_token_id": 127967,
}
NO_EXPERTS = {"num_experts": 0, "moe_topk": 0}


def test_released_model_has_its_exact_parameter_counts() -> None:
    assert count_parameters(A13B).total == 80_393_183_232
    assert count_parameters(A13B).routed == 77_309_411_328
    assert count_parameters(A13B).active == 12_747_448_320


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parameters_are_those_of_the_real_class(name: str) -> None:
    shape = PRESETS[name]
    with torch.device("meta"):
        model = model_class(shape)(native_config(shape))
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == count_parameters(shape).total
    )
    assert (
        sum(one.numel for one in released_tensors(shape).values() if one.kind not in CARRIED)
        == count_parameters(shape).total
    )


@pytest.mark.parametrize("name", ["tiny", "tiny-dense", "tiny-hy3"])
def test_a_config_is_written_with_published_fields_alone(name: str) -> None:
    shape = PRESETS[name]
    known = AutoConfig.for_model(shape.family).to_dict().keys() | {"eod_token_id"}  # the vendor's
    assert family_of(shape).native_config(shape).keys() <= known


def test_published_and_native_dialect_give_one_shape() -> None:
    published = parse_shape(PUBLISHED, source="config.json")
    native = native_config(published).to_dict()
    assert published == A13B
    assert parse_shape(native, source="config.json") == published


def test_published_file_itself_is_read() -> None:
    shape = read_shape(reference_file("config.json").parent)
    assert replace(shape, bos_token_id=None) == A13B


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
STATIC = {"rope_type": "default", "rope_theta": 10000.0 * 1000.0 ** (128 / 126)}
PER_LAYER = ("moe_topk", "moe_intermediate_size", "num_shared_expert")
WITHOUT_ROPE = {name: value for name, value in PUBLISHED.items() if not name.startswith("rope_")}
# What has been written for one model: by the vendor, and by our exports, before and now.
WRITTEN = {
    "published": PUBLISHED,
    "published with the full context": PUBLISHED | {"max_position_embeddings": 262144},
    "published with numbers": PUBLISHED | {name: PUBLISHED[name][0] for name in PER_LAYER},
    "Transformers 5": WITHOUT_ROPE | {"rope_parameters": DYNAMIC},
    "first exports": WITHOUT_ROPE
    | {"rope_parameters": DYNAMIC, "rope_scaling": DYNAMIC | {"type": "dynamic"}}
    | {"model_type": "hunyuan_v1_moe", "rope_theta": 10000.0, "head_dim": 128}
    | {name: PUBLISHED[name][0] for name in PER_LAYER},
    "exports": WITHOUT_ROPE
    | {"rope_parameters": STATIC, "rope_scaling": None, "rope_theta": STATIC["rope_theta"]}
    | {"model_type": "hunyuan_v1_moe", "max_position_embeddings": 262144, "head_dim": 128},
}


@pytest.mark.parametrize("config", WRITTEN.values(), ids=WRITTEN)
def test_every_form_that_was_written_of_a_model_gives_one_shape(config: dict) -> None:
    assert parse_shape(json.loads(json.dumps(config)), source="config.json") == A13B
    assert A13B.context_length == 262144


@pytest.mark.parametrize("family", ["hunyuan_v1_moe", "hunyuan_v1_dense"])
@pytest.mark.parametrize("context", ["plain", "partitioned"])
def test_a_static_rope_has_the_bits_of_the_published_one(family: str, context: str) -> None:
    """Training and evaluation are what they were: nothing else of the config has changed."""
    shape = replace(TINY, family=family, **({} if family == TINY.family else NO_EXPERTS))
    config = family_of(shape).native_config(shape) | {"model_type": family}
    config |= {"rope_parameters": DYNAMIC, "max_position_embeddings": 32768}
    published = AutoConfig.for_model(**config)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(published)](published)
    stretched = parse_shape(config, source="config.json")
    ours = build_model(stretched, attention="sdpa", attention_dropout=0.0)
    if context == "partitioned":
        compute_rope_in_float32(model)
        compute_rope_in_float32(ours)
    frequencies = [one.model.rotary_emb.inv_freq for one in (model, ours)]
    assert torch.equal(*frequencies)
    base = 10000.0 * 1000.0 ** (shape.head_dim / (shape.head_dim - 2))
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    assert torch.equal(frequencies[0], 1.0 / (base**exponents))
    positions = torch.tensor([[0, 1, 40_000, 262_143]])
    turned = [one.model.rotary_emb(torch.zeros(1), positions) for one in (model, ours)]
    assert all(torch.equal(*pair) for pair in zip(*turned, strict=True))


@pytest.mark.parametrize(("alpha", "head_dim"), [(1e308, 128), (1e306, 128), (1000.0, 2)])
def test_an_alpha_that_stretches_to_no_number_is_refused(alpha: float, head_dim: int) -> None:
    rope = {"type": "dynamic", "alpha": alpha, "factor": 1.0}
    config = PUBLISHED | {"rope_scaling": rope, "attention_head_dim": head_dim}
    with pytest.raises(ConfigError, match="which stretches rope_theta 10000 to no number"):
        parse_shape(config, source="config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"moe_topk": [8] * 31 + [4]}, "moe_topk"),
        ({"moe_topk": [8]}, "moe_topk"),
        ({"moe_intermediate_size": [1536] * 32}, "moe_intermediate_size 1536"),
        ({"num_shared_expert": [2] * 32}, "num_shared_expert=2"),
        ({"use_qk_norm": False}, "use_qk_norm=False"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ],
)
def test_what_the_native_class_cannot_compute_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shape(PUBLISHED | change, source="config.json")


def test_missing_field_is_named() -> None:
    config = {name: value for name, value in PUBLISHED.items() if name != "hidden_size"}
    with pytest.raises(ConfigError, match="no field 'hidden_size'"):
        parse_shape(config, source="config.json")


def test_neither_preset_nor_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a folder nor one of the presets tiny"):
        resolve_shape("tencent/Hunyuan-A13B-Instruct")


def test_folder_without_config_and_damaged_config_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED)[:-5])
    with pytest.raises(ConfigError, match="is not JSON"):
        resolve_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        (
            "tencent/Hunyuan-A13B-Instruct",
            [
                "give --model_name_or_path hf:tencent/Hunyuan-A13B-Instruct",
                "modelscope:Tencent-Hunyuan/Hunyuan-A13B-Instruct",
            ],
        ),
        ("Hunyuan-A13B-Instruct", ["hf:tencent/Hunyuan-A13B-Instruct"]),
        ("someone/a-model.v2", ["modelscope:someone/a-model.v2"]),
    ],
)
def test_a_name_of_a_hub_is_told_how_to_be_written(name, commands):
    with pytest.raises(
        ConfigError, match=f"model_name_or_path is {name}, which is neither"
    ) as caught:
        resolve_shape(name)
    assert all(command in str(caught.value) for command in commands)


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "../models/x", "a b/c;d", "tinny"])
def test_other_names_are_no_hubs(name):
    with pytest.raises(ConfigError, match="give the path of a downloaded model") as caught:
        resolve_shape(name)
    assert "hf:" not in str(caught.value)
    assert ("did you mean tiny?" in str(caught.value)) == (name == "tinny")


@pytest.mark.parametrize("name", ["A13B", "a13", "hunyuan_7b"])
def test_the_preset_that_was_meant_is_named(name):
    with pytest.raises(ConfigError, match=r"did you mean (a13b|hunyuan-7b)\? Otherwise give"):
        resolve_shape(name)
