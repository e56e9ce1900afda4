"""Model folders in the layouts in which quantised models are released, written on the spot.

The released folders themselves were not seen: names and shapes follow the specifications of the
formats (vLLM's fp8, GPTQ's own files, compressed-tensors), and what is known of Hy3-FP8.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.compressed_values import encode
from hunyuan_train.model.compression_scheme import Scheme, describe_scheme, is_compressed
from tests.released import SHAPE, write_released

GROUP = 16  # which divides the widths of the tiny model
Tensors = Mapping[str, Tensor]


def fp8_by_tensor(name: str, weight: Tensor) -> dict[str, Tensor]:
    """One scale a tensor, without dimensions, and a static one of its input."""
    scale = (weight.abs().max() / 448).to(weight.dtype)
    codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    module = name.removesuffix(".weight")
    static = torch.tensor(0.5, dtype=weight.dtype)
    return {name: codes, f"{name}_scale": scale, f"{module}.input_scale": static}


def gptq(name: str, weight: Tensor, *, zero: int = 8, act_order: bool = False) -> dict[str, Tensor]:
    """Symmetric 4 bits in GPTQ's layout: inputs down, outputs across, eight codes in a word."""
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, -1, GROUP)
    scales = (groups.abs().amax(2) / 7).half()
    codes = (groups / scales[..., None].float()).round().clamp(-8, 7) + 8
    across = codes.view(outputs, inputs).T.to(torch.int64)
    words = sum(across[place::8] << (4 * place) for place in range(8))
    zeros = sum((zero - 1) << (4 * place) for place in range(8))
    order = torch.arange(inputs, dtype=torch.int32) // GROUP
    module = name.removesuffix(".weight")
    return {
        f"{module}.qweight": words.to(torch.int32).contiguous(),
        f"{module}.qzeros": torch.full((inputs // GROUP, outputs // 8), zeros, dtype=torch.int64)
        .to(torch.int32)
        .contiguous(),
        f"{module}.scales": scales.T.contiguous(),
        f"{module}.g_idx": order.flip(0) if act_order else order,
    }


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """compressed-tensors' pack-quantized."""
    codes, scales = encode(weight, Scheme("group", GROUP))
    shape = torch.tensor(weight.shape)
    return {f"{name}_packed": codes, f"{name}_scale": scales, f"{name}_shape": shape}


FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "ignored_layers": ["lm_head", "model.embed_tokens"],
}
GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}
PACKED = describe_scheme(Scheme("group", GROUP), ["lm_head"])
LAYOUTS: dict[str, tuple[Callable[..., dict[str, Tensor]], dict[str, Any]]] = {
    "FP8 by tensor": (fp8_by_tensor, FP8),
    "GPTQ": (gptq, GPTQ),
    "pack-quantized": (packed, PACKED),
}


def write_base(
    folder: Path,
    layout: str,
    shape: ModelShape = SHAPE,
    *,
    stated: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Write a released folder and the same one quantised; return the first one's tensors."""
    write_released(folder / "plain", shape=shape, is_native=True)
    return quantise_base(folder / "plain", folder / "base", layout, shape, stated=stated, **options)


def quantise_base(
    plain: Path,
    base: Path,
    layout: str,
    shape: ModelShape,
    *,
    stated: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Write a quantised folder beside a plain one; return the plain one's tensors."""
    convert, description = LAYOUTS[layout]
    base.mkdir()
    tensors: dict[str, Tensor] = {}
    for file in plain.glob("*.safetensors"):
        tensors |= load_file(file)
    known, stored = released_tensors(shape), {}
    for name, values in tensors.items():
        is_projection = name in known and is_compressed(known[name])
        stored |= convert(name, values, **options) if is_projection else {name: values}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    for file in plain.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith("index.json"):
            (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {**description, **(stated or {})}
    (base / "config.json").write_text(json.dumps(config))
    return tensors


def plain_values(layout: str, name: str, stored: Tensors) -> Tensor:
    """What a compressed weight is worth, by the plain formula of its layout: [rows, columns]."""
    module = name.removesuffix(".weight")
    if layout == "FP8 by tensor":
        return stored[name].to(torch.bfloat16) * stored[f"{name}_scale"]
    if layout == "GPTQ":
        words, scales = stored[f"{module}.qweight"], stored[f"{module}.scales"]
        codes = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], 1).flatten(0, 1)
        return ((codes - 8).half() * scales[stored[f"{module}.g_idx"].long()]).T
    words, scales = stored[f"{name}_packed"], stored[f"{name}_scale"]
    codes = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], 2).flatten(1, 2)
    return (codes - 8).bfloat16() * scales.repeat_interleave(GROUP, 1)
