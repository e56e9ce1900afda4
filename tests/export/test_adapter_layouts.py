"""An adapter is the same in every layout: its bits, what a merge makes of it, what servers find."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.cli import main
from hunyuan_train.export.adapter_layouts import convert_adapter, fuse_experts, split_experts
from hunyuan_train.export.lora_deltas import read_changes
from hunyuan_train.families.registry import read_shape
from hunyuan_train.json_file import read_json_object
from hunyuan_train.serve.artefact import read_artefact
from hunyuan_train.serve.known_pairs import find_pairs
from tests.clients.artefacts import make_adapter as make_served_adapter
from tests.clients.commands import CommandError
from tests.clients.engine_changes import changes_by_name, changes_in_vllm, compare_changes
from tests.clients.environments import client_python
from tests.export.test_merge import ATTENTION, EXPERTS, SHARED, make_adapter, tensors_of
from tests.families.hy_v3_folder import SHAPE as HY_V3
from tests.families.hy_v3_folder import write_hy_v3
from tests.quantised_bases import quantise_base
from tests.quantize.gguf.llama_cpp import WIDE
from tests.released import SHAPE, write_released
from tests.taught import write_base

WEIGHTS = "adapter_model.safetensors"
CLIENTS = Path(__file__).parents[1] / "clients"
FAMILIES = ("hunyuan_v1_moe", "hy_v3")
# Attention of a width that vLLM has kernels for on a CPU.
SERVED_SIZES = {name: size for name, size in WIDE.items() if name != "intermediate_size"}
ALL = ATTENTION | {"target_parameters": [*EXPERTS["target_parameters"], *SHARED]}


def random_adapter(num_experts: int = 4) -> dict[str, torch.Tensor]:
    """In PEFT's layout: rank 3, hidden 8, intermediate 6, every number another one."""
    sizes = {
        "experts.base_layer.lora_A": (num_experts * 3, 8),
        "experts.base_layer.lora_B": (12, 3 * num_experts),
        "experts.lora_A": (num_experts * 3, 6),
        "experts.lora_B": (8, 3 * num_experts),
    }
    prefix = "base_model.model.model.layers.0.mlp."
    return {f"{prefix}{name}.weight": torch.randn(size) for name, size in sizes.items()}


def test_the_way_to_single_experts_and_back_keeps_every_bit() -> None:
    before = random_adapter() | {"base_model.model.x.q_proj.lora_A.weight": torch.randn(3, 8)}
    single = split_experts(before, 4)
    assert len(single) == 4 * 3 * 2 + 1
    after = fuse_experts(single, 4)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_single_experts_are_those_that_peft_computes() -> None:
    adapter, prefix = random_adapter(), "base_model.model.model.layers.0.mlp.experts"
    single = split_experts(adapter, 4)
    # PEFT's own words: A [experts, rank, in], B [out, rank, experts], and their product by expert.
    lora_a = adapter[f"{prefix}.base_layer.lora_A.weight"].reshape(4, -1, 8)
    lora_b = adapter[f"{prefix}.base_layer.lora_B.weight"].reshape(12, -1, 4)
    change = torch.einsum("o r e, e r i -> e o i", lora_b, lora_a)
    for expert in range(4):
        for part, rows in (("gate_proj", slice(0, 6)), ("up_proj", slice(6, 12))):
            name = f"{prefix}.{expert}.{part}.lora_"
            found = single[f"{name}B.weight"] @ single[f"{name}A.weight"]
            assert torch.allclose(found, change[expert, rows], atol=1e-6)


def test_what_peft_has_no_place_for_is_refused() -> None:
    single = split_experts(random_adapter(), 4)
    name = "base_model.model.model.layers.0.mlp.experts.2"
    changed = single | {f"{name}.up_proj.lora_A.weight": torch.randn(3, 8)}
    with pytest.raises(CheckpointError, match=r"experts\.2 has matrices of its own for each"):
        fuse_experts(changed, 4)
    without = {key: one for key, one in single.items() if not key.startswith(f"{name}.down_proj")}
    with pytest.raises(CheckpointError, match="down_proj of 3 of 4 experts"):
        fuse_experts(without, 4)


def test_a_converted_adapter_changes_the_model_in_the_same_way(tmp_path: Path) -> None:
    base, peft, single, back = (tmp_path / name for name in ("base", "peft", "single", "back"))
    write_released(base, dtype=torch.float32)
    make_adapter(base, peft, **ALL)
    assert main(["convert_adapter", str(base), str(peft), str(single), "--layout", "sglang"]) == 0
    convert_adapter(base, single, back, "vllm")
    before, after = load_file(peft / WEIGHTS), load_file(back / WEIGHTS)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    quantise_base(base, tmp_path / "fp8", "FP8 by tensor", SHAPE)  # whose adapters are the same
    convert_adapter(tmp_path / "fp8", peft, tmp_path / "of_fp8", "sglang")
    assert (tmp_path / "of_fp8" / WEIGHTS).read_bytes() == (single / WEIGHTS).read_bytes()
    settings = {one: read_json_object(one / "adapter_config.json") for one in (peft, single, back)}
    for name in ("target_modules", "target_parameters"):
        assert sorted(settings[back][name]) == sorted(settings[peft][name])
    assert "mlp.experts.down_proj" not in settings[single]["target_parameters"]
    assert "down_proj" in settings[single]["target_modules"]
    assert read_changes(single, SHAPE).keys() == read_changes(peft, SHAPE).keys()
    for adapter in (peft, single):
        merge = ["merge", str(base), str(adapter), str(tmp_path / f"merged_{adapter.name}")]
        assert main(merge) == 0
    merged = ("base", "merged_peft", "merged_single")
    plain, ours, theirs = (tensors_of(tmp_path / name) for name in merged)
    changed = [name for name in plain if not torch.equal(plain[name], ours[name])]
    assert any(".experts." in name for name in changed)
    assert any(".q_proj." in name for name in changed)
    assert all(torch.equal(ours[name], theirs[name]) for name in plain)


def test_a_dora_is_refused_for_servers(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_released(base, dtype=torch.float32)
    make_adapter(base, adapter, **ATTENTION, use_dora=True)
    with pytest.raises(CheckpointError, match="is a DoRA, which sglang does not load"):
        convert_adapter(base, adapter, tmp_path / "out", "sglang")
    assert not (tmp_path / "out").exists()


def write_wide(folder: Path, family: str) -> None:
    if family == "hy_v3":
        write_hy_v3(folder, shape=replace(HY_V3, **SERVED_SIZES), dtype=torch.float32)
    else:
        write_base(folder, **SERVED_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_holds_every_matrix_of_every_expert(tmp_path: Path, family: str) -> None:
    base, adapter, single, again = (tmp_path / name for name in ("base", "peft", "single", "again"))
    write_wide(base, family)
    targets = ALL if family == "hunyuan_v1_moe" else ATTENTION | EXPERTS
    make_served_adapter(base, adapter, **targets)
    convert_adapter(base, adapter, single, "sglang")
    convert_adapter(base, single, again, "vllm")
    num_experts = read_shape(base).num_experts
    ours, output = changes_by_name(single, num_experts), tmp_path / "buffers"
    assert len(ours) > num_experts
    assert compare_changes(ours, changes_in_vllm(base, again, output, "stacked")) < 1e-6
    with pytest.raises(CommandError, match="contains fused 3D MoE weights"):
        changes_in_vllm(base, again, output)  # without the flags
    tensors = load_file(again / WEIGHTS)
    lost = {key: one for key, one in tensors.items() if "layers.1.mlp.experts" not in key}
    save_file(lost, again / WEIGHTS)
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp\.experts\.0\.down_proj"):
        compare_changes(ours, changes_in_vllm(base, again, output, "stacked"))


@pytest.mark.slow
def test_vllm_reads_single_experts_of_hy_v3_alone(tmp_path: Path) -> None:
    for family in FAMILIES:
        base, adapter, single = (tmp_path / f"{family} {name}" for name in ("", "peft", "single"))
        write_wide(base, family)
        make_served_adapter(base, adapter, **ATTENTION, **EXPERTS)
        convert_adapter(base, adapter, single, "sglang")
        asked = (base, single, tmp_path / "buffers")
        pairs = find_pairs("vllm", "0.32.0", read_artefact(single, base=base).features)
        refused = [one.reason for one in pairs if one.verdict == "refused"]
        if family == "hy_v3":
            ours = changes_by_name(single, read_shape(base).num_experts)
            assert compare_changes(ours, changes_in_vllm(*asked)) < 1e-6
            assert not refused
        else:
            with pytest.raises(CommandError, match="assert w1_lora is not None"):
                changes_in_vllm(*asked)
            assert "by two names, gate_proj and w1" in refused[0]


@pytest.mark.slow
def test_vllm_takes_no_adapter_on_some_projections_of_experts(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_wide(base, "hunyuan_v1_moe")
    make_served_adapter(base, adapter, target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(CommandError, match="assert isinstance"):
        changes_in_vllm(base, adapter, tmp_path / "buffers", "stacked")


def ask(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [client_python("vllm"), CLIENTS / script, *arguments]
    return subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, check=False, timeout=3600
    )


# How SGLang's buffers join what an adapter holds apart: along the rows of A, and of B.
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@pytest.mark.slow
def test_sglang_finds_every_matrix_of_every_expert(tmp_path: Path) -> None:
    base, adapter, single = tmp_path / "base", tmp_path / "adapter", tmp_path / "single"
    write_released(base, dtype=torch.float32)
    make_adapter(base, adapter, **ALL)
    convert_adapter(base, adapter, single, "sglang")
    found = ask("sglang_adapter.py", single, SHAPE.num_hidden_layers, tmp_path / "read")
    assert found.returncode == 0, found.stderr[-2000:]
    buffers, theirs = json.loads(found.stdout.splitlines()[-1]), load_file(tmp_path / "read")
    ours, num_read = load_file(single / WEIGHTS), 0
    for key, values in theirs.items():
        assert f".{buffers[key]}." in key
        names = [
            key.replace(buffers[key], one) for one in JOINED.get(buffers[key], (buffers[key],))
        ]
        assert torch.equal(values, torch.cat([ours[name] for name in names])), key
        num_read += len(names)
    assert num_read == len(ours)
    # It places experts by this number in their names (`mem_pool.py`).
    numbers = {int(one[1]) for key in theirs if (one := re.search(r"experts\.(\d+)\.", key))}
    assert numbers == set(range(SHAPE.num_experts))
    # As PEFT stacks them they have no buffer, and SGLang says so.
    refused = ask("sglang_adapter.py", adapter, SHAPE.num_hidden_layers, tmp_path / "read")
    assert "Cannot find target module name for" in refused.stderr
    assert "experts" in refused.stderr.splitlines()[-1]
