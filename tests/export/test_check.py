"""The check of written folders passes what rounding explains, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.export.check import Trained, check_model, load_source, make_prompts, plain_losses
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.serve.errors import ServeError
from tests.released import SHAPE, write_released

DTYPES = [torch.float32, torch.bfloat16]


def trained_on(folder: Path, dtype: torch.dtype) -> Trained:
    """What a run in this dtype would say of the folder's own weights."""
    model = load_source(SHAPE, SafetensorsFolder.open(folder, SHAPE)).to(dtype)
    batch = make_prompts(SHAPE)
    return Trained(SHAPE, batch, plain_losses(model, batch), is_exact=dtype == torch.float32)


def swap(folder: Path, first: str, second: str) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        names = {first: second, second: first}
        save_file({names.get(name, name): values for name, values in tensors.items()}, file)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_trained_weights_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    write_released(tmp_path, dtype=dtype, is_native=True)
    check_model(trained_on(tmp_path, dtype), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", ["self_attn.o_proj", "mlp.experts.3.up_proj", "mlp.gate.wg"])
def test_one_exchanged_tensor_does_not(tmp_path: Path, dtype: torch.dtype, part: str) -> None:
    write_released(tmp_path, dtype=dtype, is_native=True, num_files=1)
    trained = trained_on(tmp_path, dtype)
    swap(tmp_path, f"model.layers.0.{part}.weight", f"model.layers.1.{part}.weight")
    with pytest.raises(ServeError, match="does not compute what was trained"):
        check_model(trained, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rope_without_its_alpha_does_not(tmp_path: Path, dtype: torch.dtype) -> None:
    write_released(tmp_path, dtype=dtype, is_native=True)
    trained = trained_on(tmp_path, dtype)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    file.write_text(json.dumps(config))
    with pytest.raises(ServeError, match="does not compute what was trained"):
        check_model(trained, tmp_path)


def test_float32_of_a_gpu_may_round_otherwise_and_send_a_token_elsewhere(tmp_path: Path) -> None:
    write_released(tmp_path, dtype=torch.float32, is_native=True)
    trained = trained_on(tmp_path, torch.float32)
    trained.losses[::2] += 5e-4
    trained.losses[7] += 0.05
    check_model(replace(trained, is_on_cpu=False), tmp_path)
    with pytest.raises(ServeError, match=r"largest difference .* is 5\.0e-02, at most 2\.0e-05"):
        check_model(trained, tmp_path)
    trained.losses[::2] += 5e-3
    with pytest.raises(ServeError, match=r"the mean difference .*, at most 1\.0e-03"):
        check_model(replace(trained, is_on_cpu=False), tmp_path)
