"""An adapter is the same in every layout: its bits, what a merge makes of it, what servers find."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.cli import main
from hunyuan_train.export.adapter_layouts import convert_adapter, fuse_experts, split_experts
from hunyuan_train.export.lora_deltas import read_changes
from hunyuan_train.json_file import read_json_object
from tests.clients.environments import client_python
from tests.export.test_merge import ATTENTION, EXPERTS, SHARED, make_adapter, tensors_of
from tests.released import SHAPE, write_released

WEIGHTS = "adapter_model.safetensors"
CLIENTS = Path(__file__).parents[1] / "clients"
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
    base, peft, vllm, back = (tmp_path / name for name in ("base", "peft", "vllm", "back"))
    write_released(base, dtype=torch.float32)
    make_adapter(base, peft, **ALL)
    assert main(["convert_adapter", str(base), str(peft), str(vllm), "--layout", "vllm"]) == 0
    convert_adapter(base, vllm, back, "peft")
    before, after = load_file(peft / WEIGHTS), load_file(back / WEIGHTS)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    settings = {one: read_json_object(one / "adapter_config.json") for one in (peft, vllm, back)}
    for name in ("target_modules", "target_parameters"):
        assert sorted(settings[back][name]) == sorted(settings[peft][name])
    assert "mlp.experts.down_proj" not in settings[vllm]["target_parameters"]
    assert "down_proj" in settings[vllm]["target_modules"]
    assert read_changes(vllm, SHAPE).keys() == read_changes(peft, SHAPE).keys()
    for adapter in (peft, vllm):
        merge = ["merge", str(base), str(adapter), str(tmp_path / f"merged_{adapter.name}")]
        assert main(merge) == 0
    plain, ours, theirs = (tensors_of(tmp_path / n) for n in ("base", "merged_peft", "merged_vllm"))
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


@pytest.mark.slow
def test_vllm_finds_every_matrix_of_every_expert(tmp_path: Path) -> None:
    base, adapter, single = tmp_path / "base", tmp_path / "adapter", tmp_path / "single"
    write_released(base, dtype=torch.float32)
    make_adapter(base, adapter, **ALL)
    convert_adapter(base, adapter, single, "vllm")
    found = ask_vllm(single)
    assert found.returncode == 0, found.stderr[-2000:]
    shapes = json.loads(found.stdout.splitlines()[-1])
    size = {"A": 0, "B": 1}
    tensors = load_file(single / WEIGHTS)
    for key, values in tensors.items():
        module, _, matrix = key.removeprefix("base_model.model.").partition(".lora_")
        assert shapes[module][size[matrix[0]]] == list(values.shape), key
    assert len(shapes) * 2 == len(tensors)
    # A name that vLLM does not know is an error there, so that all of the above were known.
    renamed = {key.replace(".gate_proj.", ".gate_prj."): one for key, one in tensors.items()}
    save_file(renamed, single / WEIGHTS)
    assert "gate_prj" in ask_vllm(single).stderr


def ask_vllm(adapter: Path) -> "subprocess.CompletedProcess[str]":
    return ask("vllm_adapter.py", adapter, SHAPE.num_experts)


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
