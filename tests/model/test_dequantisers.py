"""Codes, scales and values of quantised experts are those of the forms' own libraries."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.model.compressed_values import FLOAT8, decode, encode, unpack_int4
from hunyuan_train.model.compression_scheme import Scheme
from tests.clients.environments import client_python

SCHEMES = {"fp8": Scheme("channel"), "int4": Scheme("group", 32), "nf4": Scheme("nf4", 64)}


def make_weights() -> dict[str, Tensor]:
    """Weights with zeros, outliers and small rows, in both dtypes of bases."""
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[3, :64] = 0
    weight[5] *= 1e-3
    weight[7, 9] = 40
    return {"float32": weight, "bfloat16": weight.bfloat16()}


@pytest.mark.slow
def test_codes_and_values_are_those_of_bitsandbytes_and_compressed_tensors(tmp_path: Path) -> None:
    weights = make_weights()
    save_file(weights, tmp_path / "in.safetensors")
    script = Path(__file__).with_name("dequantise.py")
    files = [tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    subprocess.run([client_python("dequantisers"), script, *files], check=True)
    theirs = load_file(files[1])
    for form, scheme in SCHEMES.items():
        for dtype, weight in weights.items():
            codes, scales = encode(weight, scheme)
            values = decode(codes, scales, scheme, weight.dtype)
            name = f"{form}.{dtype}"
            assert torch.equal(scales, theirs[f"{name}.scales"].view_as(scales)), name
            assert torch.equal(codes.view(torch.uint8), theirs[f"{name}.codes"].view(torch.uint8))
            assert torch.equal(values, theirs[f"{name}.values"]), name


@pytest.mark.parametrize("form", SCHEMES)
def test_slices_of_codes_mean_slices_of_the_weight(form: str) -> None:
    scheme, weight = SCHEMES[form], make_weights()["float32"]
    codes, scales = encode(weight, scheme)
    whole = decode(codes, scales, scheme)
    assert (whole - weight).abs().max() < 40 / 6
    assert torch.equal(decode(codes[8:16], scales[8:16], scheme), whole[8:16])
    assert torch.equal(
        decode(codes[None], scales[None], scheme, torch.bfloat16)[0], whole.bfloat16()
    )


def test_int4_codes_are_packed_lowest_bits_first() -> None:
    word = sum(code << (4 * place) for place, code in enumerate([0, 1, 2, 3, 12, 13, 14, 7]))
    assert unpack_int4(torch.tensor([[word]], dtype=torch.int32)).tolist() == [
        [-8, -7, -6, -5, 4, 5, 6, -1]
    ]
    assert encode(torch.zeros(1, 32), SCHEMES["fp8"])[0].dtype == FLOAT8
