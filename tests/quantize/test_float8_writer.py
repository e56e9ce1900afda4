import hashlib
import json
from pathlib import Path

import pytest
import torch

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import CHECKSUMS
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.compressed_weights import open_model
from hunyuan_train.model.compression_scheme import Scheme, is_compressed, read_scheme
from hunyuan_train.model.safetensors_files import write_range
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.quantize.float8_writer import write_float8
from tests.families.hy_v3_folder import SHAPE as HY_V3
from tests.families.hy_v3_folder import write_hy_v3
from tests.quantize.models import (
    BLOCK,
    CHANNEL,
    DENSE,
    WIDE,
    make_job,
    plain_float8,
    write_quantized,
)
from tests.released import native_config, write_released


@pytest.mark.parametrize(
    ("scheme", "is_fused"), [(CHANNEL, False), (CHANNEL, True), (BLOCK, False), (BLOCK, True)]
)
def test_weights_are_those_of_the_plain_formula(
    tmp_path: Path, scheme: Scheme, is_fused: bool
) -> None:
    tensors, written = write_quantized(tmp_path, scheme, is_fused=is_fused)
    for tensor in released_tensors(WIDE).values():
        before, after = tensors[tensor.name], written.read(tensor, 0, tensor.numel)
        wanted = plain_float8(before, scheme) if is_compressed(tensor) else before
        assert torch.equal(after.view(tensor.shape), wanted), tensor.name
        assert torch.equal(written.read(tensor, 5, tensor.numel - 7), after[5:-7])


def test_dense_models_are_written_too(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    output.mkdir()
    write_released(source, shape=DENSE, is_native=True)
    config = native_config(DENSE) | {"model_type": DENSE.family}
    (source / "config.json").write_text(json.dumps(config))
    digests = write_float8(make_job(source, output, DENSE), output, CHANNEL)
    for name, digest in digests.items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in output.iterdir()} == digests.keys()


def test_layers_for_multi_token_prediction_stay_as_they_are(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    output.mkdir()
    tensors = write_hy_v3(source)
    write_float8(make_job(source, output, HY_V3), output, CHANNEL)
    found, written, _ = open_model(output)
    assert found == HY_V3
    for tensor in released_tensors(HY_V3).values():
        before, after = tensors[tensor.name], written.read(tensor, 0, tensor.numel)
        wanted = plain_float8(before, CHANNEL) if is_compressed(tensor) else before
        assert torch.equal(after.view(tensor.shape), wanted), tensor.name
        assert not (is_compressed(tensor) and tensor.name.startswith("model.layers.3."))
    config = json.loads((output / "config.json").read_text())
    routers = [f"model.layers.{layer}.mlp.router.gate" for layer in (1, 2)]
    ignored = config["quantization_config"]["ignore"]
    assert ignored == ["lm_head", *routers, r"re:.*layers\.3\..*"]
    biases = "model.layers.1.mlp.expert_bias"
    assert read_header(output / "model.safetensors")[biases].dtype == "F32"


def test_config_says_how_it_is_stored_and_what_is_not(tmp_path: Path) -> None:
    write_quantized(tmp_path, BLOCK)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_scheme(config, "config.json") == BLOCK
    stated = config.pop("quantization_config")
    assert stated["ignore"] == [
        "lm_head",
        *(f"model.layers.{layer}.mlp.gate.wg" for layer in range(WIDE.num_hidden_layers)),
    ]
    assert config == json.loads((tmp_path / "in" / "config.json").read_text())
    stored = {
        name: one
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, one in read_header(file).items()
    }
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert (stored[name].dtype, stored[name].shape) == ("F8_E4M3", (192, 160))
    assert (stored[f"{name}_scale"].dtype, stored[f"{name}_scale"].shape) == ("BF16", (2, 2))


def test_damaged_sources_are_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    output.mkdir()
    write_released(source, shape=WIDE, is_native=True)
    file = sorted(source.glob("*.safetensors"))[0]
    with subtests.test("a file that is not what its checksums say"):
        (source / CHECKSUMS).write_text(f"{'0' * 64}  {file.name}\n")
        with pytest.raises(CheckpointError, match=f"{file.name} is not what was written"):
            write_float8(make_job(source, output), output, CHANNEL)
        (source / CHECKSUMS).unlink()
    with subtests.test("a weight that is not finite"):
        located = read_header(file)
        name = next(one for one in located if one.endswith("_proj.weight"))
        write_range(located[name], 7, torch.tensor([torch.inf]))
        with pytest.raises(CheckpointError, match=f"{name} in .* holds NaN or infinity"):
            write_float8(make_job(source, output), output, CHANNEL)
