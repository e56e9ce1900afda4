"""What llama.cpp's converter is given, and what it is not asked to do."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from hunyuan_train.families.registry import FAMILIES, PRESETS, family_of, read_shape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.quantize.formats import find_format
from hunyuan_train.quantize.gguf.llama_cpp import find_llama_cpp, run_watched
from hunyuan_train.quantize.gguf.scripts.tokenization_ranks import RanksTokenizer
from hunyuan_train.quantize.gguf.source import RANK_FILE, check_source, find_pre_tokenizer
from hunyuan_train.quantize.gguf.staging import stage
from hunyuan_train.quantize.gguf.weights import gguf_name
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.families.grammar.test_new_tokens import without_gaps
from tests.families.hy_v3_folder import write_hy_v3
from tests.quantize.gguf.llama_cpp import with_published_splits
from tests.released import SHAPE, write_released


def write_model(folder: Path, *, is_fused: bool = False) -> Path:
    write_released(folder, is_fused=is_fused)
    (folder / RANK_FILE).write_bytes((TINY_TOKENIZER / RANK_FILE).read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("is_fused", [False, True])
def test_the_converter_is_given_single_experts_and_ranks(tmp_path: Path, is_fused: bool) -> None:
    model, staged = write_model(tmp_path / "model", is_fused=is_fused), tmp_path / "staged"
    shape = read_shape(model)
    stage(model, staged, shape)
    assert locate_weights(staged, shape).keys() == released_tensors(shape).keys()
    assert all(file.is_symlink() != is_fused for file in staged.glob("*.safetensors"))
    config = read_json_object(staged / "config.json")
    assert config["moe_topk"] == [shape.moe_topk] * shape.num_hidden_layers
    assert read_shape(staged) == shape
    assert not (staged / "tokenizer.json").exists()  # which the dense converter would prefer
    ours, theirs = load_tokenizer(TINY_TOKENIZER), RanksTokenizer.from_pretrained(str(staged))
    assert theirs.encode("Two cats? 两只猫 1234") == ours.encode("Two cats? 两只猫 1234")
    assert theirs.special_tokens["<|eos|>"] == ours.eos_id
    assert theirs.vocab_size == shape.vocab_size
    assert len(theirs.mergeable_ranks) == ours.num_ranks


@pytest.mark.parametrize("is_fused", [False, True])
def test_hy_v3_is_handed_on_under_its_released_names(tmp_path: Path, is_fused: bool) -> None:
    model, staged = tmp_path / "model", tmp_path / "staged"
    published = write_hy_v3(model, is_fused=is_fused)
    without_gaps(model)
    shape = read_shape(model)
    stage(model, staged, shape)
    source = SafetensorsFolder.open(staged, shape)
    assert shape.num_mtp_layers == 1
    assert locate_weights(staged, shape).keys() == published.keys()
    for name, tensor in released_tensors(shape).items():
        values = source.read(tensor, 0, tensor.numel)
        assert torch.equal(values, published[name].flatten()), name
    assert (staged / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_what_llama_cpp_cannot_load_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    check_source(model, SHAPE)
    with pytest.raises(ConfigError, match="attention_bias true"):
        check_source(model, replace(SHAPE, attention_bias=True))
    with pytest.raises(ConfigError, match="its model knows 100"):
        check_source(model, replace(SHAPE, vocab_size=100))
    (model / RANK_FILE).unlink()
    with pytest.raises(ConfigError, match=r"holds no hy\.tiktoken"):
        check_source(model, SHAPE)


def test_a_family_that_llama_cpp_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    unknown = replace(HUNYUAN_V1_MOE, gguf_vocabularies=())
    monkeypatch.setitem(FAMILIES, unknown.name, unknown)
    with pytest.raises(ConfigError, match=r"moe, which llama\.cpp does not have; .* hy_v3"):
        check_source(model, SHAPE)


def test_hy_v3_needs_the_vocabulary_that_its_converter_reads(tmp_path: Path) -> None:
    shutil.copyfile(TINY_TOKENIZER / RANK_FILE, tmp_path / RANK_FILE)
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json, .* vocabulary of hy_v3"):
        check_source(tmp_path, PRESETS["tiny-hy3"])


def test_splits_of_a_vocabulary_are_known_by_its_expressions(tmp_path: Path) -> None:
    shape, words = PRESETS["tiny-hy3"], without_gaps(tmp_path / "words")
    assert find_pre_tokenizer(TINY_TOKENIZER, SHAPE) == "hunyuan"
    assert find_pre_tokenizer(words, shape) == ""
    assert find_pre_tokenizer(with_published_splits(words), shape) == "hunyuan-dense"


@pytest.mark.parametrize("name", ["tiny", "tiny-dense", "a13b", "hy3", "hy-mt2-30b-a3b"])
def test_every_tensor_has_a_place_in_the_file(name: str) -> None:
    shape = PRESETS[name]
    family = family_of(shape)
    places = [gguf_name(family, one) for one in released_tensors(shape)]
    assert len(set(places)) == len(places)
    experts = {expert for _, expert in places if expert is not None}
    assert experts == set(range(shape.num_experts))
    expert = gguf_name(family, "model.layers.3.mlp.experts.7.down_proj.weight")
    assert expert == ("blk.3.ffn_down_exps.weight", 7) or not shape.num_experts


@pytest.mark.parametrize(
    ("name", "num_tensors"),
    # As llama.cpp's loader counted in files of the released models: its pull request 14425,
    # vllm-project/vllm-gguf-plugin issue 88, ikawrakow/ik_llama.cpp issue 1863.
    [("a13b", 482), ("hy3", 1298), ("hy-mt2-30b-a3b", 766)],
)
def test_a_file_of_a_released_model_has_as_many_tensors(name: str, num_tensors: int) -> None:
    shape = PRESETS[name]
    family = family_of(shape)
    assert len({gguf_name(family, one)[0] for one in released_tensors(shape)}) == num_tensors


def test_the_layer_for_multi_token_prediction_has_llama_cpps_names() -> None:
    family, prefix = family_of(PRESETS["hy3"]), "model.layers.80"
    names = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "final_layernorm.weight")
    assert [gguf_name(family, f"{prefix}.{name}")[0] for name in names] == [
        f"blk.80.nextn.{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    ]
    assert gguf_name(family, f"{prefix}.mlp.expert_bias") == ("blk.80.exp_probs_b", None)
    assert gguf_name(family, f"{prefix}.self_attn.q_norm.weight")[0] == "blk.80.attn_q_norm.weight"


def test_tools_are_found_in_a_folder_and_named_where_they_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"convert_hf_to_gguf\.py and llama-quantize are neither"):
        find_llama_cpp(str(tmp_path))
    (tmp_path / "convert_hf_to_gguf.py").touch()
    with pytest.raises(ConfigError, match=r"llama-quantize is neither in .*; clone and build"):
        find_llama_cpp(str(tmp_path))
    program = tmp_path / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    found = find_llama_cpp(str(tmp_path))
    assert (found.converter_folder, found.quantiser) == (str(tmp_path), str(program))
    with pytest.raises(ConfigError, match="does not exist"):
        find_llama_cpp(str(tmp_path / "nowhere"))


def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such tensor'); sys.exit(3)"]
    with pytest.raises(CheckpointError, match=r"exit code 3, .* no such tensor"):
        run_watched("converting", command, tmp_path / "file", 1)


def test_a_type_stands_behind_the_colon() -> None:
    assert find_format("gguf:Q4_K_M")[1] == "Q4_K_M"
    with pytest.raises(ConfigError, match="gguf takes one of f32, f16"):
        find_format("gguf:Q2_K")
