"""GPTQ by GPTQModel, in its environment: python gptqmodel_quantize.py MODEL OUT SAMPLES.json

SAMPLES holds lists of token ids to calibrate on.
"""

import json
import sys
from pathlib import Path

import torch
from gptqmodel import GPTQModel, QuantizeConfig

model_folder, out, samples = sys.argv[1:]
rows = [
    {"input_ids": ids, "attention_mask": [1] * len(ids)}
    for ids in json.loads(Path(samples).read_text())
]
config = QuantizeConfig(bits=4, group_size=32, desc_act=False, sym=True)
model = GPTQModel.load(model_folder, config, device="cpu", dtype=torch.bfloat16)
model.quantize(rows, batch_size=1)
model.save(out)
