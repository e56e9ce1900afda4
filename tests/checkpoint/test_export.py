"""The exported folder holds the trained weights, and plain Transformers computes with them."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hunyuan_train.checkpoint import export
from hunyuan_train.checkpoint.adapter import export_adapter
from hunyuan_train.checkpoint.export import export_model, split_into_files
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.model.layout import released_tensors
from hunyuan_train.model.presets import A13B
from hunyuan_train.trainer.step import forward_losses, train_step
from tests.batches import SHAPE, WEIGHTS, global_batch, plain_model
from tests.engines import kept_weights, my_share, small_engine
from tests.ranks import run_ranks

LORA = LoraConfig(use_lora=True, lora_rank=4, lora_alpha=8)

Kept = dict[tuple[str, int], Tensor]


def train_and_export(
    folder: Path, companions: list[Path], stage: int, expert_size: int, num_steps: int
) -> tuple[Kept, Tensor]:
    engine = small_engine(stage=stage, expert_size=expert_size)
    for step in range(num_steps):
        train_step(engine, my_share(global_batch(step, 4)), learning_rate=1e-2)
    export_model(engine, folder, shape=SHAPE, companions=companions)
    with torch.no_grad():
        return kept_weights(engine.module), forward_losses(engine, global_batch(9, 1)[0])


def plain_losses(model: torch.nn.Module) -> Tensor:
    """Losses of the probe batch, each document alone, through the plain model."""
    [batch] = global_batch(9, 1)
    losses = []
    for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        logits = model(input_ids=torch.from_numpy(batch.input_ids[start:stop])[None]).logits[0]
        labels = torch.from_numpy(batch.labels[start:stop])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(losses).detach()


def read_folder(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors: dict[str, Tensor] = {}
    for file in set(index["weight_map"].values()):
        tensors |= load_file(folder / file)
    assert index["weight_map"].keys() == tensors.keys()
    return tensors


@pytest.mark.parametrize(
    ("world_size", "stage", "expert_size"), [(2, 3, 2), (2, 3, 0), (2, 2, 0), (4, 3, 2), (1, 3, 1)]
)
def test_exported_model_is_the_trained_one(
    tmp_path: Path, world_size: int, stage: int, expert_size: int
) -> None:
    folder = tmp_path / "export"
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "hy.tiktoken").write_text("IQ== 0")
    ranks = run_ranks(
        train_and_export, world_size, folder, [tmp_path / "tokenizer"], stage, expert_size, 2
    )
    tensors = read_folder(folder)
    assert tensors.keys() == released_tensors(SHAPE).keys()
    for kept, _ in ranks:
        for (name, start), values in kept.items():
            exported = tensors[name].flatten()[start : start + len(values)]
            assert torch.equal(exported, values), name
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert (plain_losses(model) - ranks[0][1]).abs().max() < 2e-5
    assert (folder / "hy.tiktoken").exists()
    assert not folder.with_name("export.incomplete").exists()


def test_untrained_model_is_exported_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    run_ranks(train_and_export, 2, folder, [], 3, 2, 0)
    tensors = read_folder(folder)
    for name, stored in released_tensors(SHAPE).items():
        assert torch.equal(tensors[name].flatten(), WEIGHTS.read(stored, 0, stored.numel)), name


def test_released_model_is_written_in_files_of_five_gigabytes() -> None:
    tensors = list(released_tensors(A13B).values())
    files = split_into_files(tensors, torch.bfloat16)
    assert [tensor for file in files for tensor in file] == tensors
    sizes = [
        sum(tensor.numel * export.stored_dtype(tensor, torch.bfloat16).itemsize for tensor in file)
        for file in files
    ]
    assert max(sizes) <= export.MAX_FILE_BYTES
    assert len(files) == 33


def train_and_export_adapter(folder: Path) -> Tensor:
    engine = small_engine(stage=3, expert_size=2, lora=LORA)
    for step in range(3):
        train_step(engine, my_share(global_batch(step, 4)), learning_rate=1e-2)
    export_adapter(engine, folder, LORA, base_model="tiny")
    with torch.no_grad():
        return forward_losses(engine, global_batch(9, 1)[0])


def test_exported_adapter_loads_in_plain_peft(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    [losses, _] = run_ranks(train_and_export_adapter, 2, folder)
    base = plain_model()
    before = plain_losses(base)
    model = PeftModel.from_pretrained(base, folder)
    assert (before - losses).abs().max() > 1e-2, "the adapter must have learned something"
    assert (plain_losses(model) - losses).abs().max() < 2e-5
