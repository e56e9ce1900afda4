"""A merged folder is PEFT's own merge, tensor by tensor, and nothing else in it changed."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HunYuanMoEV1Config

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.merge import merge_adapter
from hunyuan_train.checkpoint.peft_changes import read_changes
from hunyuan_train.model.layout import released_tensors
from hunyuan_train.model.shape import native_config_dict
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.serve.check import load_served
from hunyuan_train.serve.errors import ServeError
from tests.batches import released_state
from tests.released import SHAPE, write_released

ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
SHARED = [f"shared_mlp.{part}_proj.weight" for part in ("gate", "up", "down")]


def load_plain(folder: Path) -> torch.nn.Module:
    return load_served(folder, torch.float32, HunYuanMoEV1Config(**native_config_dict(SHAPE)))


def make_adapter(base: Path, folder: Path, scale: float = 0.3, **settings: Any) -> None:
    """Have PEFT put an adapter on the base and save it, as if it had been trained."""
    torch.manual_seed(1)
    model = peft.get_peft_model(load_plain(base), peft.LoraConfig(r=4, lora_alpha=8, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
        elif "lora_magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(folder)


def merge_with_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model = peft.PeftModel.from_pretrained(load_plain(base), adapter)
    return released_state(model.merge_and_unload())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder by released name, flat, whatever its layout."""
    source = SafetensorsFolder.open(folder, SHAPE)
    return {
        name: source.read(stored, 0, stored.numel)
        for name, stored in released_tensors(SHAPE).items()
    }


@pytest.mark.parametrize("is_fused", [False, True], ids=["single experts", "fused experts"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(ATTENTION, id="attention"),
        pytest.param(
            ATTENTION | {"use_rslora": True, "alpha_pattern": {"k_proj": 3}, "rank_pattern": {"v_proj": 2}},
            id="rslora with patterns",
        ),
        pytest.param(EXPERTS, id="experts"),
        pytest.param({"target_parameters": ["experts.down_proj"]}, id="down projections of experts"),
        pytest.param({"target_modules": ["gate_proj", "up_proj", "down_proj"]}, id="redirected by PEFT"),
        pytest.param({"target_modules": ["wg"], "target_parameters": SHARED}, id="shared and router"),
        pytest.param(ATTENTION | {"use_dora": True}, id="dora"),
    ],
)  # fmt: skip
def test_merge_is_that_of_peft(tmp_path: Path, settings: dict[str, Any], is_fused: bool) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    before = write_released(base, is_fused=is_fused, is_native=is_fused)
    make_adapter(base, adapter, **settings)
    merge_adapter(base, adapter, merged)
    named = read_changes(adapter, SHAPE)
    after = tensors_of(merged)
    expected = merge_with_peft(base, adapter)
    for name, values in after.items():
        assert values.dtype == before[name].dtype
        if name not in named:
            assert torch.equal(values, before[name].flatten()), name
            continue
        # Ours adds in float32 and rounds once, as PEFT's float32 merge rounded once; where the two
        # sums differ in their last bit, a few values round to the neighbour.
        rounded = expected[name].to(values.dtype)
        assert (values != rounded).float().mean() < (5e-3 if values.dtype == torch.bfloat16 else 1)
        assert torch.allclose(values.float(), rounded.float(), rtol=2**-7, atol=1e-6), name
        assert (values != before[name].flatten()).float().mean() > 0.5, name


def test_files_beside_the_weights_come_along_and_are_summed(tmp_path: Path) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    merge_adapter(base, adapter, merged)
    assert {path.name for path in merged.iterdir()} == {
        *(path.name for path in base.iterdir()),
        "SHA256SUMS",
    }
    for name in ("config.json", "LICENSE.txt", "model.safetensors.index.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    check_sums(merged)
    # A second merge over the first, asked for by --overwrite, replaces its sums too.
    make_adapter(base, adapter, scale=0.1, **ATTENTION)
    merge_adapter(merged, adapter, tmp_path / "again")
    check_sums(tmp_path / "again")


def test_what_was_merged_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    zero_out(adapter, "model.layers.1.self_attn.k_proj.lora_B")
    with caplog.at_level(logging.INFO):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert "1 of 8 named tensors are unchanged" in caplog.text
    assert "elements of 7 tensors, by up to " in caplog.text
    assert f"the other {len(released_tensors(SHAPE)) - 8} are the base's bytes" in caplog.text
    assert "train = serve: the mean difference between losses" in caplog.text


def zero_out(adapter: Path, part: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if part in name:
            tensors[name].zero_()
    save_file(tensors, file)


def rename(adapter: Path, old: str, new: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): values for name, values in load_file(file).items()}, file)


def set_in_config(adapter: Path, **settings: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def shrink(adapter: Path, part: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: values[:, :-1].contiguous() if part in name else values for name, values in tensors.items()},
        file,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_released(folder)
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda adapter: rename(adapter, "model.layers", "layers"), r"16 of 16 tensors .* match nothing"),
        (lambda adapter: rename(adapter, "layers.1", "layers.2"), r"8 of 16 .*layers\.2\.self_attn\.\w_proj\.lora_A"),
        (lambda adapter: rename(adapter, "0.self_attn.q_proj.lora_A", "x"), "2 of 16 .*match nothing"),
        (lambda adapter: rename(adapter, "lora_A", "lora_embedding_A"), "lora_embedding_A"),
        (lambda adapter: shrink(adapter, "q_proj.lora_A"), "q_proj is made for weights of 128 x 63"),
        (lambda adapter: shrink(adapter, "q_proj.lora_B"), "matrices of 4 and 3 ranks"),
        (lambda adapter: set_in_config(adapter, modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]"),
        (lambda adapter: set_in_config(adapter, bias="all"), "bias='all'"),
        (lambda adapter: set_in_config(adapter, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda adapter: set_in_config(adapter, peft_type="IA3"), "peft_type IA3; only LORA"),
        (lambda adapter: zero_out(adapter, "lora_B"), "changes none of the 8 tensors it names"),
        (lambda adapter: set_in_config(adapter, lora_alpha=1e-7), "changes none of the 8 tensors"),
        (lambda adapter: (adapter / "adapter_config.json").unlink(), "give the folder of a PEFT adapter"),
    ],
)  # fmt: skip
def test_adapter_that_cannot_be_merged_is_refused(
    tmp_path: Path, base: Path, spoil: Any, message: str
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(base, adapter, **ATTENTION)
    spoil(adapter)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(base, adapter, merged)
    assert not merged.exists()
    assert not list(tmp_path.glob("*.incomplete"))


def test_adapter_that_no_loss_shows_is_an_error(tmp_path: Path, base: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(base, adapter, target_modules=["q_proj"], layers_to_transform=[0])
    # A change of one element of a query's weights, far too small to matter.
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, values in tensors.items():
        keep = values[:1, :1].clone()
        values.zero_()
        values[:1, :1] = keep * (1e-4 if "lora_B" in name else 1)
    save_file(tensors, file)
    before = write_released(tmp_path / "wide", dtype=torch.float32)
    assert before
    with pytest.raises(ServeError, match="would be served without effect"):
        merge_adapter(tmp_path / "wide", adapter, merged)
    assert not merged.exists()


def check_sums(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    digests = dict(reversed(line.split("  ")) for line in lines)
    assert digests.keys() == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in digests.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
