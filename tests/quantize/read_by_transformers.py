"""What Transformers makes of a folder, run in an environment with compressed-tensors."""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
with torch.no_grad():
    model(torch.arange(5, 21)[None])  # unpacks what is still compressed
wanted = {
    name: values.detach().float().contiguous()
    for name, values in model.named_parameters()
    if "scale" not in name and values.dtype.is_floating_point
}
save_file(wanted, sys.argv[2])
