"""A model by llm-compressor, in its environment.

python llmcompressor_oneshot.py MODEL OUT SCHEME SAMPLES.json

SCHEME is FP8, FP8_DYNAMIC, FP8_BLOCK or W4A16 (by GPTQ); SAMPLES holds lists of token ids.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import load_quantizable_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

model_folder, out, scheme, samples = sys.argv[1:]
with load_quantizable_moe():
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
rows = json.loads(Path(samples).read_text())
modifier = GPTQModifier if scheme == "W4A16" else QuantizationModifier
recipe = modifier(targets="Linear", scheme=scheme, ignore=["lm_head", r"re:.*mlp\.gate.*"])
oneshot(
    model=model,
    dataset=Dataset.from_list(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
    ),
    recipe=recipe,
    num_calibration_samples=len(rows),
    max_seq_length=max(map(len, rows)),
)
model.save_pretrained(out, save_compressed=True)
