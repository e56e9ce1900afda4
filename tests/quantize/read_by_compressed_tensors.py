"""What compressed-tensors makes of FP8 weights in blocks, run in its environment.

Transformers 5.17 unpacks experts with one scale for each channel only.
"""

import sys
from pathlib import Path

from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file

args = preset_name_to_scheme("FP8_BLOCK", ["Linear"]).weights
stored = {}
for file in Path(sys.argv[1]).glob("*.safetensors"):
    stored |= load_file(file)
save_file(
    {
        name: dequantize(stored[name], stored[f"{name}_scale"], args=args).float().contiguous()
        for name in stored
        if f"{name}_scale" in stored
    },
    sys.argv[2],
)
