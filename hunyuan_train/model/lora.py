"""Low-rank adapters: where they go, and how PEFT is told.

Adapters on linear layers are PEFT's own, injected in place, so that the model keeps its class and
names. Adapters on the routed experts are ours (`parallel/expert_lora.py`): PEFT's wrapper hides the
experts from the engine.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hunyuan_train.config.adapters import adapted_modules
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import in_engine, in_transformers
from hunyuan_train.families.tensors import Kind, StoredTensor


def linear_pattern(config: LoraConfig, shape: ModelShape) -> str | None:
    """Pattern of the linear layers to adapt, over whole module names; None where there are none.

    It knows a module by Transformers' name and by that of the engine's expert-parallel layer.
    """
    family = family_of(shape)
    parts: set[str] = set()
    for module, kind in adapted_modules(config, shape).items():
        if kind is not Kind.EXPERT:
            names = (in_transformers(family, module), in_engine(family, module))
            parts |= {re.escape(name) for name in names}
    return rf".*\.({'|'.join(sorted(parts))})" if parts else None


def add_linear_adapters(
    model: nn.Module, config: LoraConfig, shape: ModelShape, *, seed: int
) -> None:
    """Put adapters on the chosen linear layers of a model whose weights are in place.

    Raises:
        ConfigError: PEFT refuses the combination.
    """
    import peft

    pattern = linear_pattern(config, shape)
    if pattern is None:
        return
    torch.manual_seed(seed)  # every rank must draw the same initial adapters
    description = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=pattern,
    )
    try:
        with targets_as_named():
            peft.inject_adapter_in_model(description, model)
    except ValueError as error:
        raise ConfigError(
            f"lora_target_modules is {config.lora_target_modules}: {error}"
        ) from error


@contextmanager
def targets_as_named() -> Iterator[None]:
    """Keep PEFT from sending targets elsewhere.

    For this model type PEFT 0.21 rewrites gate_proj, up_proj and down_proj, also those of the
    shared expert, to the routed experts (peft/utils/transformers_weight_conversion.py; no issue is
    known). It can go when PEFT leaves a pattern alone that matches real linear layers.
    """
    from peft.utils import transformers_weight_conversion

    original = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = original


def draw_adapter(tensor: StoredTensor, *, seed: int) -> Tensor:
    """First values of one expert's A matrix, as PEFT draws them: uniform within 1 / sqrt(columns).

    They depend on the seed and the name only, so they are the same however experts are split.

    Returns:
        [elements], float32.
    """
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = tensor.shape[-1] ** -0.5
    return torch.empty(tensor.numel).uniform_(-bound, bound, generator=generator)


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the base model."""
    return "lora_" in parameter_name
