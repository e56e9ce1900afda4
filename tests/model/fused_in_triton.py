"""A model whose norms, rope and SwiGLU are Liger's, by Triton's interpreter, beside the plain one.

    TRITON_INTERPRET=1 python -m tests.model.fused_in_triton

Run where liger-kernel is installed; prints JSON: for each family and dtype, the relative distance
of the logits and of the gradients that lie furthest apart, and which parameter that is.
"""

import json
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from triton.runtime import interpreter

from hunyuan_train.families.registry import FAMILIES, PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.fused import fuse_layers, load_kernels

SHAPES = [PRESETS[name] for name in ("tiny", "tiny-dense", "tiny-hy3")]
TOKENS = 24


@triton.jit
def reciprocal_root(value):
    """As CUDA's function of that name."""
    return tl.rsqrt(value)


def mend_interpreter() -> None:
    """Give it what Triton's compiler has: floats that are float32, and CUDA's reciprocal root."""
    rms_norm.rsqrt = reciprocal_root
    convert = interpreter._implicit_cvt

    def convert_all(argument: object) -> object:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = convert_all


def compute(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """Logits and all gradients of a pass."""
    logits = model(ids, use_cache=False).logits
    logits.float().square().mean().backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"logits": logits.detach(), **gradients}


def distance(one: Tensor, other: Tensor) -> float:
    """Between two tensors, by the length of the second."""
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-30))


def compare(shape: ModelShape, dtype: torch.dtype) -> tuple[float, float, str]:
    """Distance of logits and of the furthest gradient, and whose that is."""
    torch.manual_seed(0)
    small = replace(shape, num_hidden_layers=2, vocab_size=64, pad_token_id=None)
    config = AutoConfig.for_model(small.family, **FAMILIES[small.family].native_config(small))
    config._attn_implementation = "sdpa"
    plain = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, one in plain.named_parameters():  # norms of ones would hide how their weights round
        if "norm" in name:
            torch.nn.init.uniform_(one, 0.5, 1.5)
    fused, ids = deepcopy(plain), torch.randint(0, 64, (1, TOKENS))
    wanted = compute(plain, ids)
    fuse_layers(fused, load_kernels())
    got = compute(fused, ids)
    assert got.keys() == wanted.keys()
    distances = {name: distance(got[name], wanted[name]) for name in wanted}
    logits = distances.pop("logits")
    furthest = max(distances, key=lambda name: distances[name])
    return logits, distances[furthest], furthest


def main() -> None:
    mend_interpreter()
    found = {
        f"{shape.family} {dtype}": compare(shape, dtype)
        for shape in SHAPES
        for dtype in (torch.float32,)
    }
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
