"""A process of its own that runs llm-compressor's GPTQ on one weight after the other.

It runs in an environment that has llm-compressor, whose pins differ from ours, and so knows nothing
of this package: `python gptq_worker.py GROUP_SIZE`. A line of standard input names a file with
`hessian` and `weights` of the same inputs below one another, and a file for the answer; a line of
standard output says that the answer is there. `--version` prints what it would work with.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    ActivationOrdering,
    QuantizationScheme,
    initialize_module_for_quantization,
    preset_name_to_scheme,
)
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.quantization.calibration import initialize_observer, observe
from safetensors.torch import load_file, save_file
from torch import Tensor


def make_scheme(group_size: int) -> QuantizationScheme:
    """Four-bit groups; scales are those of the weights as they were (static ordering)."""
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = group_size
    scheme.weights.actorder = ActivationOrdering.STATIC
    return scheme


@torch.no_grad()
def quantize(weights: Tensor, hessian: Tensor, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """Quantise rows that have the same inputs.

    Args:
        weights: [rows, columns].
        hessian: [columns, columns], float32, of what goes in; it is overwritten.
        scheme: of the weights.

    Returns:
        `weight_packed` and `weight_scale` of all rows, as compressed-tensors stores them.
    """
    rows, columns = weights.shape
    module = torch.nn.Linear(columns, rows, bias=False, device="meta")
    module.weight = torch.nn.Parameter(weights, requires_grad=False)
    initialize_module_for_quantization(module, scheme, force_zero_point=True)
    initialize_observer(module, "weight")
    observe(module, base_name="weight")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)
    module.weight_observer.to(device)
    _, values = quantize_weight(
        module=module, quant_args=scheme.weights, hessian=hessian.to(device)
    )
    packed = PackedQuantizationCompressor.compress(values, scheme)
    names = ("weight_packed", "weight_scale")
    return {name: packed[name].cpu().contiguous() for name in names}


def answer(request: dict[str, Any], scheme: QuantizationScheme) -> None:
    """Quantise what a file holds, and write the answer to another."""
    tensors = load_file(request["task"])
    save_file(quantize(tensors["weights"], tensors["hessian"], scheme), request["answer"])


def main(arguments: list[str]) -> None:
    """Answer requests until there are no more."""
    if arguments == ["--version"]:
        print(version("llmcompressor"))  # noqa: T201 the answer
        return
    scheme = make_scheme(int(arguments[0]))
    for line in sys.stdin:
        answer(json.loads(line), scheme)
        print("done", flush=True)  # noqa: T201 the answer


if __name__ == "__main__":
    main(sys.argv[1:])
