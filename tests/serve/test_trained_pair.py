"""An adapter of a quantised base is served with that base, or refused with the reason."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hunyuan_train import cli
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export.huggingface_folder import write_adapter
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.base_folder import identify_weights, resolve_base
from hunyuan_train.model.expert_codes import as_computed
from hunyuan_train.model.find_model import open_base
from hunyuan_train.selftest.reference import plain_model
from hunyuan_train.serve.base_model import load_base
from hunyuan_train.serve.generate import load_model
from hunyuan_train.shipped import TINY_TOKENIZER
from tests import taught
from tests.families.hy_v3_folder import SHAPE as HY_V3
from tests.families.hy_v3_folder import write_hy_v3
from tests.quantised_bases import LAYOUTS, quantise_base, write_base
from tests.released import SHAPE

QUESTIONS = Path(__file__).parents[2] / "data/practice_eval.jsonl"
ASKED = ["--engine", "vllm", "--print", "--gpus", "2", "--gpu_memory", "80"]


def make_adapter(folder: Path, base: Path, expert_weights: str) -> Path:
    """An adapter on one projection, as an export writes it."""
    shape = resolve_base(str(base))
    name = "model.layers.0.self_attn.q_proj"
    width = shape.num_attention_heads * shape.head_dim
    adapters = {
        f"{name}.lora_A.weight": torch.ones(8, shape.hidden_size),
        f"{name}.lora_B.weight": torch.ones(width, 8),
    }
    folder.mkdir()
    lora = LoraConfig(use_lora=True, lora_rank=8)
    write_adapter(
        folder, adapters, lora, shape, base_model=str(base), expert_weights=expert_weights
    )
    return folder


def serve(*arguments: object) -> int:
    return cli.main(["serve", *map(str, arguments), *ASKED])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path, "FP8 by tensor")
    return tmp_path / "base"


def test_the_manifest_names_the_form_and_the_hash_of_the_base(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, "base")
    assert json.loads((adapter / "export_manifest.json").read_text()) == {
        "base": str(base),
        "base_identity": identify_weights(str(base)),
        "expert_weights": resolve_base(str(base)).stored_as,
    }


def test_the_engine_gets_the_base_that_was_trained(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, "base")
    assert serve(adapter) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["vllm", "serve", str(base)]
    assert json.loads(words[words.index("--lora-modules") + 1])["path"] == str(adapter)
    moved = base.rename(tmp_path / "moved")
    assert serve(adapter, "--base", moved) == 0
    assert shlex.split(capsys.readouterr().out)[2] == str(moved)


def test_other_weights_and_other_forms_are_refused_unless_asked(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, "base")
    file = base / "model.safetensors"
    stored = load_file(file)
    save_file({name: values.flip(0) for name, values in stored.items()}, file)
    assert serve(adapter) == 2
    assert "has other weights" in capsys.readouterr().err
    config = json.loads((base / "config.json").read_text())
    del config["quantization_config"]
    (base / "config.json").write_text(json.dumps(config))
    assert serve(adapter) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "are stored as full precision; give that base with --base DIR" in error
    for command in (["chat", adapter, "--prompt", "?"], ["evaluate", adapter, QUESTIONS]):
        assert cli.main([str(word) for word in command]) == 2
        assert " ".join(capsys.readouterr().err.split()) == error
    assert serve(adapter, "--any_base") == 0


@pytest.mark.parametrize("kept", ["fp8", "nf4", "int4"])
def test_a_form_that_no_engine_loads_is_refused_with_the_remedy(
    tmp_path: Path, base: Path, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, kept)
    assert serve(adapter) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"with its experts in {kept}, made while loading, and no engine loads that form" in error
    assert "hunyuan-train merge" in error
    assert serve(adapter, "--any_base") == 0


def test_a_damaged_manifest_is_a_sentence(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, "base")
    (adapter / "export_manifest.json").write_text('{"base": "x"}')
    assert serve(adapter) == 2
    assert "does not say on which base" in capsys.readouterr().err


def test_chat_and_evaluate_take_the_base_of_an_adapter_and_no_other(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "plain", "nf4")
    commands = (["chat", adapter, "--prompt", "?"], ["evaluate", adapter, QUESTIONS])
    asked = [[*map(str, command), "--base"] for command in commands]
    for command in asked:
        assert cli.main([*command, str(base)]) == 2
        assert "are stored as full precision, and those of" in " ".join(
            capsys.readouterr().err.split()
        )
    other = shutil.copytree(tmp_path / "plain", tmp_path / "other")
    for file in other.glob("*.safetensors"):
        save_file({name: one.flip(0) for name, one in load_file(file).items()}, file)
    for command in asked:
        assert cli.main([*command, str(other)]) == 2
        assert "has other weights" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["fp8", "nf4", "int4"])
def test_a_loaded_pair_computes_what_the_run_computed(tmp_path: Path, kept: str) -> None:
    plain = taught.write_base(tmp_path / "plain", intermediate_size=96)  # 32 divides it
    adapter = make_adapter(tmp_path / "adapter", plain, kept)
    shape = resolve_base(str(plain))
    source = open_base(plain, shape)
    computed = as_computed(kept, shape, source, torch.float32)
    coded = load_model(adapter).model.get_base_model()
    for_experts = load_base(plain, shape, adapter=None, made_form=kept, keeps_codes=False)
    untouched = load_model(adapter, as_trained=False).model.get_base_model()
    found = [
        lambda expert: coded.model.layers[1].mlp.experts.weight("down_proj", expert),
        lambda expert: for_experts.model.layers[1].mlp.experts.down_proj[expert],
    ]
    for expert in range(shape.num_experts):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        tensor = released_tensors(shape)[name]
        values = computed.read(tensor, 0, tensor.numel).view(tensor.shape)
        assert all(torch.equal(read(expert), values) for read in found), name
        values = source.read(tensor, 0, tensor.numel).view(tensor.shape)
        assert torch.equal(untouched.model.layers[1].mlp.experts.down_proj[expert], values), name
    assert coded.generation_config.to_diff_dict() == untouched.generation_config.to_diff_dict()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_base_computes_as_the_plain_model_with_its_numbers(
    tmp_path: Path, layout: str
) -> None:
    write_base(tmp_path, layout)
    shape = resolve_base(str(tmp_path / "base"))
    check_logits(tmp_path / "base", plain_model(shape, open_base(tmp_path / "base", shape)))


def test_a_quantised_hy_v3_computes_as_the_plain_model(tmp_path: Path) -> None:
    write_hy_v3(tmp_path / "plain")
    base = tmp_path / "base"
    quantise_base(tmp_path / "plain", base, "FP8 by tensor", HY_V3)
    shape = resolve_base(str(base))
    check_logits(base, plain_model(shape, open_base(base, shape)))


def check_logits(base: Path, plain: nn.Module) -> None:
    """Compare a folder as it answers, from codes and from whole experts, with a plain model."""
    shape, ids = resolve_base(str(base)), torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids).logits
        for keeps_codes in (True, False):
            found = load_base(
                base, shape, adapter=None, dtype=torch.float32, keeps_codes=keeps_codes
            )
            logits = found(input_ids=ids).logits
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_chat_and_evaluate_answer_on_a_quantised_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = load_tokenizer(TINY_TOKENIZER)
    ids = {"pad_token_id": words.pad_id, "eos_token_id": words.eos_id, "eod_token_id": words.eos_id}
    shape = replace(SHAPE, vocab_size=words.vocab_size, **ids)
    write_base(tmp_path, "FP8 by tensor", shape)
    base = tmp_path / "base"
    adapter = make_adapter(tmp_path / "adapter", base, "base")
    common = ["--tokenizer", TINY_TOKENIZER, "--max_new_tokens", 3, "--json"]
    for model in (adapter, base):
        assert cli.main(["chat", *map(str, (model, "--prompt", "?", *common))]) == 0
        assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] >= 1
    asked = (adapter, QUESTIONS, "--number", 1, *common)
    assert cli.main(["evaluate", *map(str, asked)]) == 0
    assert json.loads(capsys.readouterr().out)["eval_valid_format"] == 0  # weights are random
