"""What GPTQModel makes of codes: python gptqmodel_dequantise.py FOLDER OUT.safetensors"""

import sys

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import save_file

# In the dtype of the scales, and by plain torch.
model = GPTQModel.load(sys.argv[1], device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
found = {
    f"{name}.weight": module.dequantize_weight().T.contiguous()
    for name, module in model.model.named_modules()
    if hasattr(module, "qweight")
}
save_file(found, sys.argv[2])
