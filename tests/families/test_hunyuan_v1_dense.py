"""The dense family: the released size, and a run of a tiny one from training to serving."""

import shutil
from dataclasses import replace
from pathlib import Path

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
    assert shape.rope_alpha == 1000.0


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


def test_it_trains_resumes_and_exports_what_it_trained(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finished = start_train(*SETTINGS, "--output_dir", str(whole), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "train = serve" in finished.stderr
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000004")
    shutil.rmtree(cut / "export")
    resume = ("--output_dir", str(cut), "--resume_from_checkpoint", "auto")
    finished = start_train(*SETTINGS, *resume, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stderr
    ends = [
        {
            name: one
            for file in folder.glob("export/*.safetensors")
            for name, one in load_file(file).items()
        }
        for folder in (whole, cut)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    served = AutoModelForCausalLM.from_pretrained(whole / "export")
    assert served.config.model_type == "hunyuan_v1_dense"
    assert {name for name, _ in served.named_parameters()} == ends[0].keys()
