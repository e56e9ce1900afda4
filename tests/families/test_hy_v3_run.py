"""A tiny hy_v3 as a user runs it: training, resuming, serving, adapters on everything, merging."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hunyuan_train.cli import main
from tests.conftest import start_train

SETTINGS = (
    *("--recipe", "tiny", "--model_name_or_path", "tiny-hy3", "--sample_answers", "false"),
    *("--max_steps", "4", "--save_steps", "2"),
)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--expert_parallel_size 5", "it must divide the model's 16 experts"),
        ("--router_aux_loss_coef 0.1", "the routers of this model have sigmoid scores"),
        ("--router_guardian aux_loss", "--router_guardian warn, freeze_router or stop"),
    ],
)
def test_settings_that_do_not_go_with_its_routers_are_refused(
    flags: str, rule: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["train", *SETTINGS, "--dry_run", "--output_dir", str(tmp_path / "run")]
    assert main([*arguments, *flags.split()]) == 2
    assert rule in " ".join(capsys.readouterr().err.split())


PLANS = [
    ("hy3", "full", 4, 8, True),
    ("hy3", "lora", 2, 8, True),
    ("hy3", "full", 2, 8, False),
    ("hy3", "lora", 1, 8, True),  # its experts in fp8
    ("hy-mt2-30b-a3b", "full", 1, 8, True),
    ("hy-mt2-30b-a3b", "full", 1, 4, True),
    ("hy-mt2-30b-a3b", "full", 1, 2, False),
    ("hy-mt2-30b-a3b", "lora", 1, 1, True),
    ("hunyuan-7b", "full", 1, 1, True),
]


@pytest.mark.parametrize(("name", "method", "nodes", "gpus", "fits"), PLANS)
def test_published_models_are_planned_by_name(name, method, nodes, gpus, fits, capsys) -> None:
    command = ["plan", "--model", name, "--method", method, "--nodes", str(nodes)]
    command += ["--gpus", str(gpus), "--gpu_memory", "80"]
    assert main(command) == (0 if fits else 1)
    if not fits:
        assert "the nearest plan that fits: --" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its first step to its export."""
    folder = tmp_path_factory.mktemp("hy3")
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
    assert {name for name in ends[0] if name.endswith("expert_bias")}
    config = json.loads((whole / "export/config.json").read_text())
    asked = ("first_k_dense_replace", "expert_hidden_dim", "route_norm", "qk_norm")
    assert [config[name] for name in asked] == [1, 96, True, True]


@pytest.mark.slow
def test_its_adapter_is_served_and_merged_as_peft_does(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run, merged = whole / "export", tmp_path / "run", tmp_path / "merged"
    settings = ("--recipe", "tiny", "--model_name_or_path", str(base), "--max_steps", "3")
    settings += ("--train_data_file", "data/tiny_train.jsonl", "--lora_rank", "8")
    adapting = ("--use_lora", "--lora_target_modules", "all", "--learning_rate", "1e-2")
    finished = start_train(
        *(*settings, *adapting, "--sample_answers", "false", "--output_dir", str(run)), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert "train = serve" in finished.stderr
    assert main(["merge", str(base), str(run / "export"), str(merged)]) == 0
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, run / "export")
    served = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids, use_cache=False).logits
        assert (served(input_ids=ids, use_cache=False).logits - expected).abs().max() < 1e-4
        with adapted.disable_adapter():
            assert (adapted(input_ids=ids, use_cache=False).logits - expected).abs().max() > 1e-3
    tensors, before = read_tensors(merged), read_tensors(base)
    changed = {name for name in before if not torch.equal(before[name], tensors[name])}
    kinds = ("_proj.weight", "router.gate.weight")
    adaptable = {name for name in before if name.endswith(kinds)}
    # In three steps some experts are never chosen: nothing is added to these.
    chosen = {name for name in adaptable if ".experts." in name} & changed
    assert chosen
    assert changed == chosen | {name for name in adaptable if ".experts." not in name}
    asked = ("--prompt", "hello", "--max_new_tokens", "4", "--json")
    for folder in (merged, run / "export"):
        capsys.readouterr()
        assert main(["chat", str(folder), *asked]) == 0
        assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] == 4
