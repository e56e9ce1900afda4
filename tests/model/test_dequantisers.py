"""Codes, scales and values of quantised experts are those of the forms' own libraries."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.model.compressed_values import (
    FLOAT8,
    NF4_LEVELS,
    decode,
    encode,
    encode_nf4,
    find_nf4_scales,
    find_scales,
    unpack_int4,
)
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


def test_nf4_codes_count_the_bounds_below_a_weight() -> None:
    levels = torch.tensor(NF4_LEVELS)
    bounds = (levels[1:] + levels[:-1]) / 2
    beside = [bounds, bounds.nextafter(bounds + 1), bounds.nextafter(bounds - 1), -bounds]
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**20,), generator=generator).to(torch.int32)
    anything = bits.view(torch.float32)
    values = torch.cat([*beside, torch.tensor([0.0, -0.0, 1.0, -1.0]), anything])
    values = values[values.isfinite()]
    values = values[: len(values) // 64 * 64][None]
    pairs = encode_nf4(values, torch.ones(1, values.shape[1] // 64), SCHEMES["nf4"])
    codes = torch.stack((pairs >> 4, pairs & 15), -1).flatten()
    assert torch.equal(codes, torch.bucketize(values[0], bounds).to(torch.uint8))
    assert set(codes.tolist()) == set(range(16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_of_groups_come_from_the_largest_of_their_weights(dtype: torch.dtype) -> None:
    weight = make_weights()["float32"].to(dtype)
    largest = weight.abs().unflatten(1, (-1, 64)).amax(dim=2)
    assert torch.equal(find_nf4_scales(weight, SCHEMES["nf4"]), largest.float())
    scheme = Scheme("group", 64)
    expected = torch.where(largest == 0, torch.finfo(dtype).eps, largest / 7.5)
    assert torch.equal(find_scales(weight, scheme), expected)
    weight[8, 0], weight[9, 1], weight[10, 70] = torch.nan, torch.inf, -torch.inf
    scales = find_scales(weight, scheme)
    assert (scales[8, 0].isnan(), scales[9, 0], scales[10, 1]) == (True, torch.inf, torch.inf)


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
