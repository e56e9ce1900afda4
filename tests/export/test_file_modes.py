"""Whoever may read what a user writes may read a model that is written for them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hunyuan_train.cli import main
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export.huggingface_folder import write_adapter
from hunyuan_train.model.weights import SafetensorsFolder
from tests.released import SHAPE, make_run, write_checkpoint, write_released


@pytest.fixture(params=[0o022, 0o027, 0o007], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_modes_that_umask_says(tmp_path: Path, umask: int) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    model, adapter, merged = tmp_path / "model", tmp_path / "adapter", tmp_path / "merged"
    write_released(base)
    checkpoint = make_run(run, base)
    source = SafetensorsFolder.open(base, SHAPE)
    write_checkpoint(checkpoint, SHAPE, source, num_ranks=1, expert_size=1)
    for file in base.iterdir():
        file.chmod(0o600)  # as some downloads have it
    assert main(["export", str(checkpoint), str(model)]) == 0
    adapter.mkdir()
    write_adapter(adapter, make_matrices(), LORA, SHAPE, base_model=str(base))
    assert main(["merge", str(base), str(adapter), str(merged)]) == 0
    for folder in (model, adapter, merged):
        files = list(folder.iterdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
        assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert len(list(model.iterdir())) >= 10


LORA = LoraConfig(use_lora=True, lora_target_modules="q_proj", lora_rank=2)


def make_matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = SHAPE.num_attention_heads * SHAPE.head_dim
    matrices = {}
    for layer in range(SHAPE.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.q_proj"
        sizes = {"lora_A": (2, SHAPE.hidden_size), "lora_B": (width, 2)}
        for matrix, size in sizes.items():
            values = torch.randn(size, generator=generator)
            matrices[f"{name}.{matrix}.default.weight"] = values
    return matrices
