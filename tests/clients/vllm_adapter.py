"""What vLLM's loader makes of an adapter: run by an interpreter of the `vllm` client.

    vllm_adapter.py FOLDER NUM_EXPERTS

Loads it by vLLM's own classes, with the names that vLLM expects of a model with gated experts, and
writes JSON: the shapes of A and B by module. It fails where vLLM refuses the adapter. No engine is
started: vLLM's kernels for adapters on experts need a GPU.
"""

import json
import sys

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers.fused_moe.layer import fused_moe_make_expert_params_mapping

folder, num_experts = sys.argv[1], int(sys.argv[2])
mapping = fused_moe_make_expert_params_mapping(
    torch.nn.Module(), "gate_proj", "down_proj", "up_proj", num_experts
)
expected = {name.rstrip(".") for _, name, _, _ in mapping}
expected |= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
loaded = LoRAModel.from_local_checkpoint(
    folder,
    expected | {"experts"},
    peft_helper=PEFTHelper.from_local_dir(folder, 512),
    lora_model_id=1,
    device="cpu",
    dtype=torch.float32,
)
shapes = {
    name: [list(one.lora_a.shape), list(one.lora_b.shape)] for name, one in loaded.loras.items()
}
print(json.dumps(shapes))
