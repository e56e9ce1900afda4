"""Loads a model, or the base of an adapter, whether its weights are quantised or not."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.build import native_config
from hunyuan_train.model.expert_codes import find_codes
from hunyuan_train.model.find_model import open_base
from hunyuan_train.model.quantised_model import load_quantised_model
from hunyuan_train.model.released_files import GENERATION_CONFIG
from hunyuan_train.serve.artefact import ADAPTER_WEIGHTS, find_experts


def load_base(
    folder: Path,
    shape: ModelShape,
    *,
    adapter: Path | None,
    made_form: str = "",
    dtype: torch.dtype | None = None,
    keeps_codes: bool = True,
) -> PreTrainedModel:
    """Load a model of Transformers' class with the numbers that a run computes with.

    Args:
        folder: of the model.
        shape: of the model.
        adapter: that will be put on it.
        made_form: of its experts, where a run quantised them while loading.
        dtype: of computing; default: that of the weights that are not quantised.
        keeps_codes: of experts that the adapter leaves alone.

    Raises:
        ConfigError: weights that do not fit their config.json, or the GPUs.
    """
    source = open_base(folder, shape)  # names what is missing or damaged
    dtype = dtype or source.dtype
    if not made_form and not shape.stored_as:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=native_config(shape),
            dtype=dtype,
            device_map="auto" if torch.cuda.is_available() else None,
        )
    codes = None
    if shape.num_experts:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        codes = find_codes(made_form or "base", shape, source, dtype, device=device)
    if adapter is not None and find_experts(adapter / ADAPTER_WEIGHTS):
        keeps_codes = False
    model = load_quantised_model(shape, source, codes, dtype, keeps_codes=keeps_codes)
    if (folder / GENERATION_CONFIG).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()
