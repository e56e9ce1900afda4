"""Commands of engines, pairs that are refused, and how a model is laid over GPUs."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hunyuan_train import cli
from hunyuan_train.families.hunyuan_v1_dense import HUNYUAN_4B
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.registry import family_of
from hunyuan_train.serve import start
from hunyuan_train.serve.artefact import read_artefact
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.known_pairs import KNOWN_PAIRS, find_pairs
from hunyuan_train.serve.placement import cache_bytes, place
from tests.released import SHAPE, native_config

GPU = 80 * 10**9


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    shape = replace(SHAPE, head_dim=128)
    (folder / "config.json").write_text(json.dumps(native_config(shape)), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def make_adapter(folder: Path, base: Path, **settings: object) -> Path:
    folder.mkdir()
    fields = {"base_model_name_or_path": str(base), "r": 12, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(fields | settings), encoding="utf-8")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    given = [str(one) for one in arguments]
    assert cli.main(["serve", *given, "--print", "--gpus", "2", "--gpu_memory", "80"]) == 0
    return shlex.split(capsys.readouterr().out)


def test_vllm_gets_the_parsers_of_this_model(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = printed(capsys, model, "--engine", "vllm", "--engine_args=--seed 1")
    assert words[:3] == ["vllm", "serve", str(model)]
    assert words[words.index("--reasoning-parser") + 1] == "hunyuan_a13b"
    assert words[words.index("--tool-call-parser") + 1] == "hunyuan_a13b"
    assert words[-2:] == ["--seed", "1"]
    assert "vllm" not in sys.modules


def test_each_engine_gets_its_own_words(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(capsys, model, "--engine", "sglang", "--max_model_len", "4096")
    assert words[:4] == ["sglang", "serve", "--model-path", str(model)]
    assert words[words.index("--context-length") + 1] == "4096"
    assert words[words.index("--reasoning-parser") + 1] == "hunyuan"
    file = model / "model-Q8_0.gguf"
    file.touch()
    words = printed(capsys, file, "--engine", "llamacpp", "--port", "9")
    assert words[:3] == ["llama-server", "--model", str(file)]
    assert words[words.index("--port") + 1] == "9"
    assert "--jinja" in words


@pytest.mark.parametrize(("num_gpus", "left"), [(2, "1 is left"), (4, "3 are left")])
def test_spare_gpus_are_counted(
    model: Path, capsys: pytest.CaptureFixture[str], num_gpus: int, left: str
) -> None:
    asked = ["serve", str(model), "--engine", "vllm", "--print", "--gpu_memory", "80"]
    assert cli.main([*asked, "--gpus", str(num_gpus)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 GPU holds the model and a dialogue of" in said
    assert left in said


def test_tensorrt_llm_is_only_printed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((model / "config.json").read_text())
    square = {"hidden_size": 1024, "num_attention_heads": 8}
    (model / "config.json").write_text(json.dumps(config | square))
    asked = ["serve", str(model), "--engine", "trtllm", "--gpus", "2", "--gpu_memory", "80"]
    assert cli.main([*asked, "--tensor_parallel_size", "2"]) == 0  # without --print
    words = shlex.split(capsys.readouterr().out)
    assert words[:2] == ["trtllm-serve", str(model)]
    assert words[words.index("--tp_size") + 1] == "2"
    assert words[words.index("--ep_size") + 1] == "2"


def test_a_run_stands_for_its_export_and_a_whole_model_takes_no_base(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model.rename(run / "export")
    assert printed(capsys, run, "--engine", "vllm")[2] == str(run / "export")
    for command in (["serve"], ["chat"], ["evaluate", "--needle_lengths", "256"]):
        assert cli.main([command[0], str(run), *command[1:], "--base", "/nope"]) == 2
        assert "leave --base out" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_an_error(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "find_installed", lambda _: None)
    asked = ["serve", str(model), "--engine", "vllm", "--gpus", "2", "--gpu_memory", "80"]
    assert cli.main(asked) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "vLLM is not installed here, so no server was started: " in said.err
    assert "--print" in said.err
    assert cli.main([*asked, "--print"]) == 0
    assert capsys.readouterr().out.startswith("vllm serve ")


def test_tensorrt_llm_is_refused_heads_of_another_width_than_it_divides(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    assert config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]
    asked = ["serve", str(model), "--engine", "trtllm", "--print", "--gpus", "2"]
    assert cli.main([*asked, "--gpu_memory", "80"]) == 2
    assert "whatever head_dim says" in capsys.readouterr().err
    narrow = replace(A13B, head_dim=64)
    for shape, is_refused in ((A13B, False), (HUNYUAN_4B, False), (narrow, True)):
        folder = model.with_name(f"{shape.family}-{shape.head_dim}")
        folder.mkdir()
        fields = family_of(shape).native_config(shape)
        (folder / "config.json").write_text(json.dumps({"model_type": shape.family, **fields}))
        features = read_artefact(folder, base=None).features
        refused = [one for one in find_pairs("trtllm", "", features) if one.verdict == "refused"]
        assert bool(refused) == is_refused, shape


def test_adapter_on_experts_gets_its_layout(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = make_adapter(tmp_path / "adapter", model, target_parameters=experts)
    words = printed(capsys, adapter, "--engine", "vllm")
    assert "--enable-mixed-moe-lora-format" in words
    module = json.loads(words[words.index("--lora-modules") + 1])
    assert module == {"name": "adapter", "path": str(adapter), "is_3d_lora_weight": True}
    assert words[words.index("--max-lora-rank") + 1] == "16"
    plain = printed(capsys, make_adapter(tmp_path / "plain", model), "--engine", "vllm")
    assert "--enable-mixed-moe-lora-format" not in plain


def write_experts(adapter: Path, *names: str) -> None:
    """Give a described adapter a file with matrices A of experts by these names."""
    prefix = "base_model.model.model.layers.0.mlp.experts."
    tensors = {f"{prefix}{name}lora_A.weight": torch.zeros(12, 64) for name in names}
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_adapter_of_single_experts_is_for_sglang(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "single", model, target_modules=["gate_proj"])
    write_experts(adapter, "7.gate_proj.", "7.up_proj.", "7.down_proj.")
    words = printed(capsys, adapter, "--engine", "sglang")
    assert words[words.index("--lora-paths") + 1] == f"single={adapter}"
    assert cli.main(["serve", str(adapter), "--engine", "vllm", "--print"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "by two names, gate_proj and w1" in said
    assert "--layout vllm" in said
    features = read_artefact(adapter, base=None).features
    refused = find_pairs("vllm", "0.31.0", features)
    assert "leaves adapters on routed experts out" in refused[0].reason
    of_hy3 = features - {"hunyuan_v1_moe"} | {"hy_v3"}
    assert not [one for one in find_pairs("vllm", "0.32.0", of_hy3) if one.verdict == "refused"]
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    assert cli.main(["serve", str(adapter), "--engine", "vllm", "--print"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("",), ("base_layer.",), ("0.gate_proj.", "0.up_proj.")])
def test_adapter_on_some_projections_of_experts_is_not_for_vllm(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    adapter = make_adapter(tmp_path / "part", model)
    write_experts(adapter, *names)
    assert cli.main(["serve", str(adapter), "--engine", "vllm", "--print"]) == 2
    assert "ends where one is missing" in " ".join(capsys.readouterr().err.split())
    write_experts(adapter, "", "base_layer.")
    assert "--enable-mixed-moe-lora-format" in printed(capsys, adapter, "--engine", "vllm")


@pytest.mark.parametrize(
    ("engine", "settings", "flags", "reason"),
    [
        ("vllm", {"use_dora": True}, (), "DoRA"),
        ("sglang", {"target_parameters": ["mlp.experts.down_proj"]}, (), "number of the expert"),
        ("trtllm", {}, (), "takes no adapters"),
        ("sglang", None, ("--tools", "whole"), "Hy3"),
        ("vllm", None, ("--tools", "streamed"), "streamed calls"),
        ("llamacpp", None, (), "GGUF"),
    ],
)
def test_pair_that_fails_is_refused_with_what_works(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    settings: dict[str, object] | None,
    flags: tuple[str, ...],
    reason: str,
) -> None:
    path = model if settings is None else make_adapter(tmp_path / "a", model, **settings)
    arguments = ["serve", str(path), "--engine", engine, *flags, "--print", "--gpus", "0"]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "Do this:" in said


def test_dynamic_rope_is_refused_only_where_it_is_lost() -> None:
    for version, is_refused in (("0.32.0", True), ("0.32.0+cpu", True), ("0.33.0", False)):
        found = find_pairs("vllm", version, {"dynamic rope"})
        assert bool(found) == is_refused
    assert all(row.source and row.reason for row in KNOWN_PAIRS)
    assert all(row.remedy for row in KNOWN_PAIRS if row.verdict == "refused")


def test_compressed_experts_are_refused_on_a_cpu_alone(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (model / "config.json").write_text(json.dumps(config))
    features = read_artefact(model, base=None).features
    assert "no kernels on a CPU" in find_pairs("vllm", "0.32.0", features | {"cpu"})[0].reason
    assert not [one for one in find_pairs("vllm", "0.32.0", features) if one.verdict == "refused"]


def place_a13b(num_gpus: int, **wanted: int | None) -> object:
    usual = {"tensor_parallel_size": None, "context_length": None}
    return place(
        A13B, weight_bytes=161 * 10**9, num_gpus=num_gpus, gpu_memory=GPU, **usual | wanted
    )


def test_the_fewest_gpus_that_hold_weights_and_a_dialogue() -> None:
    placed = place_a13b(8)
    assert (placed.tensor_parallel_size, placed.num_spare_gpus) == (4, 4)
    assert placed.context_length == A13B.context_length
    room = 0.9 * GPU - 4e9 - 161e9 / 4
    assert placed.context_length * cache_bytes(A13B, 4) <= room
    with pytest.raises(ServeError, match="161 GB"):
        place_a13b(2)
    with pytest.raises(ServeError, match="does not divide"):
        place_a13b(8, tensor_parallel_size=3)


def test_a_server_that_nobody_started_is_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", str(model), "--check", "http://127.0.0.1:9"]) == 2
    assert "start the server first" in capsys.readouterr().err
