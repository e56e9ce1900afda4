"""What bitsandbytes and compressed-tensors make of weights and codes, run in their environment.

IN.safetensors holds weights; OUT.safetensors gets codes, scales and dequantised weights by form.
"""

import sys

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

FORMS = {
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "int4": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
}
found = {}
for name, weight in load_file(sys.argv[1]).items():
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found[f"nf4.{name}.codes"] = packed.view(weight.shape[0], -1)
    found[f"nf4.{name}.scales"] = state.absmax.view(weight.shape[0], -1)
    found[f"nf4.{name}.values"] = bnb.dequantize_4bit(packed, state)
    for form, fields in FORMS.items():
        args = QuantizationArgs(symmetric=True, **fields)
        groups = weight.unflatten(1, (-1, fields.get("group_size", weight.shape[1])))
        scales, zeros = calculate_qparams(groups.amin(2), groups.amax(2), args)
        dtype = torch.float8_e4m3fn if form == "fp8" else torch.int8
        codes = quantize(weight, scales, zeros, args, dtype=dtype)
        found[f"{form}.{name}.values"] = dequantize(codes, scales, zeros, args=args)
        found[f"{form}.{name}.codes"] = codes if form == "fp8" else pack_to_int32(codes, 4)
        found[f"{form}.{name}.scales"] = scales
save_file({name: one.contiguous() for name, one in found.items()}, sys.argv[2])
