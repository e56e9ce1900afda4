"""Adapters in the form that plain PEFT loads on the plain model.

Attention and router are ordinary targets. The shared expert is named by its parameters: PEFT 0.21
sends the module names gate_proj, up_proj and down_proj to the routed experts, but leaves parameter
names alone. Routed experts are the two 3-D parameters, whose matrices PEFT stores with two
dimensions: A with rows (expert, rank), B with columns (rank, expert).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hunyuan_train.config.adapters import adapted_modules
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export.new_rows import NEW_ROWS, PREFIX
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import in_transformers, model_parameters
from hunyuan_train.families.tensors import FUSED, VOCABULARY, Kind

if TYPE_CHECKING:
    import peft

EXPERT_ADAPTER = re.compile(
    r"(?P<experts>.*\.experts)\.(?P<expert>\d+)"
    r"\.(?P<kind>gate_up|down)_(?P<matrix>lora_[AB])\.weight"
)
# PEFT wraps the experts once a parameter: gate_up_proj inside, down_proj outside.
WRAPPERS = {"gate_up": ".base_layer", "down": ""}


def peft_description(
    config: LoraConfig, shape: ModelShape, *, base_model: str
) -> "peft.LoraConfig":
    """What adapter_config.json says of the adapters."""
    import peft

    family = family_of(shape)
    modules: list[str] = []
    parameters: list[str] = []
    for module, kind in adapted_modules(config, shape).items():
        name = in_transformers(family, module)
        if kind is Kind.EXPERT:
            parameters += [f"{name}.{fused}" for fused in FUSED]
        elif kind in family.peft_by_parameter:
            inner = name.partition(".")[2]  # as far as it is needed to tell it from others
            parameters.append(f"{inner if '.' in inner else name}.weight")
        else:
            modules.append(name.rpartition(".")[2])
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=config.lora_rank,
        lora_alpha=config.alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=modules,
        target_parameters=parameters or None,
        trainable_token_indices=_list_new_rows(shape),
    )


def _list_new_rows(shape: ModelShape) -> dict[str, list[int]] | None:
    """The rows that PEFT puts in place of the base's, by module; it knows of tied heads itself."""
    if not shape.num_new_tokens:
        return None
    rows = list(range(shape.first_new_token, shape.first_new_token + shape.num_new_tokens))
    return {module.rpartition(".")[2]: rows for module in vocabulary_modules(shape)}


def vocabulary_modules(shape: ModelShape) -> list[str]:
    """The modules with a row for each token, as Transformers names them."""
    found = [one for one in model_parameters(shape) if one.kind in VOCABULARY]
    return [one.name.removesuffix(".weight") for one in found]


def peft_tensors(shape: ModelShape, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and lay out adapters for adapter_model.safetensors.

    Args:
        shape: of the model.
        adapters: whole matrices by stored name (`families/tables.py`), of routed experts every
            expert of a layer: A [rank, in], B [out, rank]; and embedding and head, of which the
            rows of new tokens were trained: [vocabulary, hidden].
    """
    tensors: dict[str, Tensor] = {}
    experts: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    whole = {f"{module}.weight": module for module in vocabulary_modules(shape)}
    first, last = shape.first_new_token, shape.first_new_token + shape.num_new_tokens
    for name, values in adapters.items():
        if name in whole:
            tensors[f"{PREFIX}{whole[name]}{NEW_ROWS}"] = values[first:last]
            continue
        key, expert = adapter_key(shape, name)
        if expert is None:
            tensors[key] = values
        else:
            experts[key][expert] = values
    for key, by_expert in experts.items():
        stacked = torch.stack([by_expert[expert] for expert in sorted(by_expert)])
        if ".lora_A." in key:
            tensors[key] = stacked.flatten(0, 1)  # [experts * rank, in]
        else:
            tensors[key] = stacked.permute(1, 2, 0).flatten(1, 2)  # [out, rank * experts]
    return {key: values.contiguous() for key, values in tensors.items()}


def adapter_key(shape: ModelShape, name: str) -> tuple[str, int | None]:
    """Under which key PEFT stores an adapter's matrix, and of which routed expert it is a part.

    Args:
        shape: of the model.
        name: the matrix's stored name.
    """
    match = EXPERT_ADAPTER.fullmatch(name)
    if match is None:
        return PREFIX + _peft_name(in_transformers(family_of(shape), name)), None
    wrapper, matrix = WRAPPERS[match["kind"]], match["matrix"]
    return f"{PREFIX}{match['experts']}{wrapper}.{matrix}.weight", int(match["expert"])


def _peft_name(name: str) -> str:
    """Drop the adapter's name, and the `.weight` that PEFT does not store of DoRA's magnitudes."""
    name = name.replace(".default.", ".")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
