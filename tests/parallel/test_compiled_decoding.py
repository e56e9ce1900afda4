"""One kernel decodes frozen experts on GPUs, if it gives the same bits as torch's operators."""

import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hunyuan_train.model import expert_formats
from hunyuan_train.model.compressed_values import decode, encode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.parallel.quantised_experts import (
    CompressedWeights,
    FrozenProduct,
    compile_or_warn,
)

CPU = torch.device("cpu")
KERNEL = "hunyuan_train.model.decoding_kernel"
SHAPES = ((2, 256, 384), (2, 384, 256), (2, 256, 384))  # gate, down, up


def projections(scheme: Scheme) -> list[CompressedWeights]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in SHAPES:
        weights = CompressedWeights(shape, scheme)
        for expert in range(shape[0]):
            values = torch.randn(shape[1:], generator=generator).bfloat16()
            weights.put(expert, *encode(values, scheme), CPU)
        found.append(weights)
    return found


def offer(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("decoding_kernel")
    module.decode_piece = kernel
    monkeypatch.setitem(sys.modules, KERNEL, module)


@pytest.mark.parametrize(
    "scheme", [Scheme("nf4", 64), Scheme("group", 32), Scheme("block")], ids=str
)
def test_what_gives_the_same_bits_decodes_every_piece_forward_and_backward(
    scheme: Scheme, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: Counter[tuple[int, ...]] = Counter()

    def kernel(codes: Tensor, scales: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
        values = decode(codes, scales, scheme, dtype)
        seen[tuple(values.shape)] += 1
        return values

    monkeypatch.setattr(expert_formats, "PIECE_BYTES", 1)  # blocks of 128
    offer(kernel, monkeypatch)
    weights = projections(scheme)
    compile_or_warn(weights, torch.bfloat16)
    assert [one.decoder for one in weights] == [kernel] * 3
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
    # Tried on the first piece of both kinds of projection, cut both ways.
    assert seen == {(2, 128, 384): 1, (2, 256, 128): 1, (2, 128, 256): 1, (2, 384, 128): 1}
    seen.clear()
    rows = torch.randn(6, 384).bfloat16().requires_grad_()
    product = FrozenProduct.apply(rows, weights[0], torch.tensor([2, 6], dtype=torch.int32))
    assert seen == {(2, 128, 384): 2}
    product.sum().backward()
    assert seen == {(2, 128, 384): 2, (2, 256, 128): 3}


@pytest.mark.parametrize("cut", [(2, 128, 384), (2, 384, 128)])
def test_what_gives_another_bit_is_not_used_and_says_so(
    cut: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(codes: Tensor, scales: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
        values = decode(codes, scales, scheme, dtype)
        if tuple(values.shape) == cut:
            values.view(torch.int16)[1, 3, 5] ^= 1  # the last bit of one weight
        return values

    monkeypatch.setattr(expert_formats, "PIECE_BYTES", 1)
    offer(kernel, monkeypatch)
    weights = projections(Scheme("nf4", 64))
    compile_or_warn(weights, torch.bfloat16)
    assert [one.decoder for one in weights] == [decode] * 3
    assert "compiled, it gives 1 weights another value" in caplog.text
    assert "experts are decoded by torch's operators" in caplog.text


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_without_triton_torch_decodes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    weights = projections(Scheme("channel"))
    compile_or_warn(weights, torch.bfloat16)
    assert [one.decoder for one in weights] == [decode] * 3
    assert "No module named 'triton'" in caplog.text
