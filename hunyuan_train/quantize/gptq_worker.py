"""A process of its own that runs llm-compressor's GPTQ on one weight after the other.

It runs in an environment that has llm-compressor, whose pins differ from ours, and so knows nothing
of this package: `python gptq_worker.py GROUP_SIZE`. A line of standard input names a file with
`hessian` and `weights` of the same inputs below one another, and a file for the answer; a line of
standard output says that the answer is there.
"""

import json
import sys
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    ActivationOrdering,
    QuantizationScheme,
    preset_name_to_scheme,
)
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.quantization.calibration import initialize_observer, observe
from safetensors.torch import load_file, save_file
from torch import Tensor

DONE, ROUNDED = "done", "rounded"  # lines of standard output; others are the library's


def make_scheme(group_size: int) -> QuantizationScheme:
    """Four-bit groups; scales are those of the weights as they were (static ordering)."""
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = group_size
    scheme.weights.actorder = ActivationOrdering.STATIC
    return scheme


@torch.no_grad()
def quantize(
    weights: Tensor, hessian: Tensor, scheme: QuantizationScheme
) -> tuple[dict[str, Tensor], bool]:
    """Quantise rows that have the same inputs.

    Args:
        weights: [rows, columns].
        hessian: [columns, columns], float32, of what goes in.
        scheme: of the weights.

    Returns:
        `weight_packed` and `weight_scale` of all rows, as compressed-tensors stores them; and
        whether the Hessian could not be inverted, so that they were only rounded.
    """
    rows, columns = weights.shape
    module = torch.nn.Linear(columns, rows, bias=False, device="meta")
    module.weight = torch.nn.Parameter(weights, requires_grad=False)
    module.quantization_scheme = scheme
    initialize_observer(module, "weight")
    observe(module, "weight")
    observer: Any = module.weight_observer
    found = observer.get_qparams()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quantized, _, is_only_rounded = quantize_weight(
        weights=weights.to(device, torch.float32)[None],
        hessians=hessian.to(device)[None],
        scale=found["scale"][None],
        zero_point=found["zero_point"][None],
        global_scale=None,
        quant_args=scheme.weights,
    )
    values = {
        "weight": quantized[0].cpu().to(weights.dtype),
        "weight_scale": found["scale"].to(weights.dtype),
        "weight_zero_point": found["zero_point"].to(scheme.weights.zp_dtype),
    }
    packed = PackedQuantizationCompressor.compress(values, scheme)
    names = ("weight_packed", "weight_scale")
    return {name: packed[name].contiguous() for name in names}, bool(is_only_rounded.any())


def answer(request: dict[str, Any], scheme: QuantizationScheme) -> str:
    """Quantise what a file holds, write the answer to another, and say how it was done."""
    tensors = load_file(request["task"])
    packed, is_only_rounded = quantize(tensors["weights"], tensors["hessian"], scheme)
    save_file(packed, request["answer"])
    return ROUNDED if is_only_rounded else DONE


def main(arguments: list[str]) -> None:
    """Answer requests until there are no more."""
    scheme = make_scheme(int(arguments[0]))
    for line in sys.stdin:
        print(answer(json.loads(line), scheme), flush=True)  # noqa: T201 the answer


if __name__ == "__main__":
    main(sys.argv[1:])
