"""What stands in config.json, for every family and source of a base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hunyuan_train.export.served_config import complete_generation_config, describe_config
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.registry import PRESETS, parse_shape
from tests.reference import reference_file
from tests.released import published_config

DENSE = {
    "model_type": "hunyuan_v1_dense",
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "vocab_size": 128167,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "use_qk_norm": True,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32},
    "eod_token_id": 127967,
    "sep_token_id": 127962,
    "pretraining_tp": 1,
}
STRANGE = {
    "a_field_of_tomorrow": {"kept": [1, None, "ü"]},
    "class_num": 0,
    "moe_drop_tokens": False,
}
BASES = {"published": published_config(A13B), "dense": DENSE}


def describe(base: dict[str, Any]) -> dict[str, Any]:
    shape = parse_shape(base, source="config.json")
    return json.loads(json.dumps(describe_config(shape, torch.bfloat16, base=base)))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_fields_that_are_not_understood_come_along(base: dict[str, Any]) -> None:
    written = describe(base | STRANGE | {"sep_token_id": 127962})
    assert STRANGE.items() <= written.items()
    assert written["sep_token_id"] == 127962
    assert parse_shape(written, source="out") == parse_shape(base, source="config.json")
    assert describe(written) == written, "an export of an export is the same"


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_reader_finds_one_rope_and_the_full_context(base: dict[str, Any]) -> None:
    written = describe(base)
    theta = 10000.0 * 1000.0 ** (128 / 126)
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": theta}
    assert (written["rope_theta"], written["rope_scaling"]) == (theta, None)
    assert written["max_position_embeddings"] == 262144
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


def test_the_published_file_itself_comes_along() -> None:
    base = json.loads(reference_file("config.json").read_text())
    written = describe(base)
    changed = {name for name in base if name not in written or written[name] != base[name]}
    assert changed == {
        *("auto_map", "model_type", "attention_dropout", "transformers_version"),
        *("rope_theta", "rope_scaling", "max_position_embeddings"),
    }


def test_code_of_the_model_does_not_come_along_and_is_not_asked_for() -> None:
    aliases = {"num_experts_per_tok": [8] * 32, "num_local_experts": 64}
    code = {"auto_map": {"AutoModelForCausalLM": "hunyuan.HunYuanMoEV1ForCausalLM"}}
    written = describe(published_config(A13B) | code | aliases)
    assert not {"auto_map", *aliases} & written.keys()
    assert written["moe_topk"] == [8] * 32
    config = AutoConfig.for_model(**written)
    assert (config.model_type, config.num_experts) == ("hunyuan_v1_moe", 64)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_back(name: str) -> None:
    shape = PRESETS[name]
    written = json.loads(json.dumps(describe_config(shape, torch.float32, base={})))
    assert parse_shape(written, source="config.json") == shape
    assert AutoConfig.for_model(**written).architectures == written["architectures"]


@pytest.mark.parametrize("before", [None, {"eos_token_id": 127960, "top_k": 20, "new": [1]}])
def test_generation_stops_at_every_end(tmp_path: Path, before: dict[str, Any] | None) -> None:
    if before:
        (tmp_path / "generation_config.json").write_text(json.dumps(before))
    complete_generation_config(tmp_path, A13B)
    after = json.loads((tmp_path / "generation_config.json").read_text())
    assert after == (before or {}) | {"eos_token_id": [127960, 127967], "pad_token_id": 127961}
