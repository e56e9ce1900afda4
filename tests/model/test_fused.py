"""Liger's kernels in a model: against Transformers' operators, by Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.model import fused
from hunyuan_train.model.build import build_model
from hunyuan_train.model.fused import (
    Kernels,
    describe_lack,
    fuse_layers,
    fuse_or_warn,
    is_fused,
)
from tests.clients.triton import ask_triton
from tests.config.resolved import resolve_flags

# Of float32, in which the interpreter is exact; it has no bfloat16 arithmetic.
TOLERANCE = 1e-5


def small_model(name: str) -> PreTrainedModel:
    shape = replace(PRESETS[name], num_hidden_layers=1)
    return build_model(shape, attention="sdpa", attention_dropout=0.0)


@pytest.mark.slow
def test_a_model_of_each_family_computes_the_same_by_the_kernels() -> None:
    found = ask_triton("tests.model.fused_in_triton", TRITON_INTERPRET="1")
    assert len(found) == 3
    for name, (logits, furthest, parameter) in found.items():
        assert logits < TOLERANCE, name
        assert furthest < TOLERANCE, (name, parameter)


@pytest.mark.parametrize("name", ["tiny", "tiny-dense", "tiny-hy3"])
def test_every_norm_and_mlp_and_the_rope_go_to_the_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"norm": 0, "gate": 0}

    def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        calls["norm"] += 1
        return torch.nn.functional.rms_norm(hidden, weight.shape, weight, epsilon)

    def gate(one: Tensor, other: Tensor) -> Tensor:
        calls["gate"] += 1
        return torch.nn.functional.silu(one) * other

    model = small_model(name)
    assert not is_fused(model)
    modeling = vars(__import__(type(model).__module__, fromlist=["_"]))
    rope = modeling[fused.ROPE]
    monkeypatch.setitem(modeling, fused.ROPE, rope)  # to be put back
    with torch.no_grad():
        for one in model.parameters():
            torch.nn.init.normal_(one, std=0.1)
        wanted = model.model(torch.arange(5)[None]).last_hidden_state
        fuse_layers(model, Kernels(norm=norm, rope=rope, gate=gate))
        got = model.model(torch.arange(5)[None]).last_hidden_state
    torch.testing.assert_close(got, wanted)
    assert is_fused(model)
    # Before attention, of queries and keys, before the MLP, and at the end.
    assert calls == {"norm": 5, "gate": 1}


def test_without_a_gpu_or_the_package_all_runs_as_ever_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "fuse_layers", lambda *_: pytest.fail("there is nothing to use"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fuse_or_warn(small_model("tiny"))
    assert "use_liger_kernel is true, and all runs without it: there is no GPU" in caplog.text
    monkeypatch.setattr(fused, "PACKAGE", "no_such_package")
    assert "pip install liger-kernel" in describe_lack(is_on_gpu=True)
    monkeypatch.setattr(fused, "PACKAGE", "json")
    assert describe_lack(is_on_gpu=True) == ""


def test_selective_recomputation_refuses_kernels_that_write_over_what_it_keeps() -> None:
    flags = ["--use_liger_kernel", "--gradient_checkpointing", "selective"]
    with pytest.raises(ConfigError, match="use_liger_kernel is true and gradient_checkpointing"):
        resolve_flags(flags, Machine(num_gpus=1, num_cores=2), shape=PRESETS["tiny"])
