"""The dense family: the released size, and a run of a tiny one from training to serving."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hunyuan_train.cli import main
from hunyuan_train.families.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from hunyuan_train.families.registry import PRESETS, parse_shape
from hunyuan_train.families.tables import count_kind, count_parameters, kind_of
from hunyuan_train.families.tensors import Kind
from tests.conftest import start_train

DENSE = PRESETS["tiny-dense"]
SETTINGS = (
    *("--recipe", "tiny", "--model_name_or_path", "tiny-dense", "--sample_answers", "false"),
    *("--max_steps", "4", "--save_steps", "2"),
)


def test_the_published_7b_has_its_parameters() -> None:
    published = {
        "model_type": "hunyuan_v1_dense",
        "vocab_size": 128167,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
        "use_qk_norm": True,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    }
    shape = parse_shape(published, source="config.json")
    counts = count_parameters(shape)
    assert counts.total == counts.active == 7_504_568_320
    assert shape.rope_theta == 10000.0 * 1000.0 ** (128 / 126)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("hunyuan-7b", 7_504_568_320),
        ("hunyuan-4b", 4_221_757_440),
        ("hunyuan-1.8b", 1_791_080_448),
        ("hunyuan-0.5b", 539_010_048),
    ],
)
def test_published_models_have_their_parameters(name: str, total: int) -> None:
    assert count_parameters(PRESETS[name]).total == total


def test_it_has_no_experts_and_no_router() -> None:
    assert count_kind(DENSE, Kind.EXPERT) == count_kind(DENSE, Kind.ROUTER) == 0
    assert kind_of(HUNYUAN_V1_DENSE, "model.layers.1.mlp.gate_proj.weight") is Kind.MLP
    untied = replace(DENSE, tie_word_embeddings=False)
    extra = DENSE.vocab_size * DENSE.hidden_size
    assert count_parameters(untied).total == count_parameters(DENSE).total + extra


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--expert_parallel_size 2", "no routed experts to split"),
        ("--deepspeed ds_configs/zero3_ep.json", "zero3_ep.json has an enabled expert_parallel"),
        ("--freeze_router", "no routed experts"),
        ("--use_lora --lora_target_modules experts", "name some of attention, mlp, all"),
    ],
)
def test_settings_of_experts_are_refused(
    flags: str, rule: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["train", *SETTINGS, "--dry_run", "--output_dir", str(tmp_path / "run")]
    assert main([*arguments, *flags.split()]) == 2
    assert rule in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its first step to its export."""
    folder = tmp_path_factory.mktemp("dense")
    finished = start_train(*SETTINGS, "--output_dir", str(folder / "run"), cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "train = serve" in finished.stderr
    return folder / "run"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: one for file in files for name, one in load_file(file).items()}


@pytest.mark.slow
def test_it_resumes_and_exports_what_it_trained(whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000004")
    shutil.rmtree(cut / "export")
    resume = ("--output_dir", str(cut), "--resume_from_checkpoint", "auto")
    finished = start_train(*SETTINGS, *resume, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stderr
    ends = [read_tensors(folder / "export") for folder in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    served = AutoModelForCausalLM.from_pretrained(whole / "export")
    assert served.config.model_type == "hunyuan_v1_dense"
    assert {name for name, _ in served.named_parameters()} == ends[0].keys()


@pytest.mark.slow
def test_its_adapter_is_served_and_merged_as_peft_does(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run, merged = whole / "export", tmp_path / "run", tmp_path / "merged"
    settings = ("--recipe", "tiny", "--model_name_or_path", str(base), "--max_steps", "3")
    settings += ("--train_data_file", "data/tiny_train.jsonl")
    adapting = ("--use_lora", "--lora_target_modules", "all", "--learning_rate", "1e-2")
    finished = start_train(
        *(*settings, *adapting, "--sample_answers", "false", "--output_dir", str(run)), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert "train = serve" in finished.stderr
    assert main(["merge", str(base), str(run / "export"), str(merged)]) == 0
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = peft.PeftModel.from_pretrained(plain, run / "export").merge_and_unload()
    tensors, before = read_tensors(merged), read_tensors(base)
    for name, values in expected.named_parameters():
        assert torch.equal(tensors[name], values.to(tensors[name].dtype)), name
    changed = {name for name in before if not torch.equal(before[name], tensors[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    asked = ("--prompt", "hello", "--max_new_tokens", "4", "--json")
    for folder in (merged, run / "export"):
        capsys.readouterr()
        assert main(["chat", str(folder), *asked]) == 0
        assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] == 4


def test_a_plan_of_it_counts_every_weight_as_active(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "--model", "tiny-dense", "--gpus", "1", "--gpu_memory", "80", "--json"]
    assert main(plan) == 0
    device = json.loads(capsys.readouterr().out)["device"]
    assert device["weights"] >= 2 * count_parameters(DENSE).total
    assert not any("expert" in name or "dispatch" in name for name in device)
