"""Low-rank adapters, put into the model in place by PEFT.

Injecting keeps the model's class and names, so that AutoEP, loading and export see the same model
with and without adapters.
"""

import peft
import torch
from torch import nn

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import LoraConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

# PEFT 0.21 sends these to the routed experts, whatever module was meant (transformers'
# weight-conversion table for this model type); adapters there need code that is not here yet.
REDIRECTED_BY_PEFT = ("gate_proj", "up_proj", "down_proj", "shared_mlp", "wg", "experts")


def adapter_config(config: LoraConfig) -> peft.LoraConfig:
    """The adapter as PEFT describes it, which is also what adapter_config.json says.

    Raises:
        ConfigError: a target that PEFT would put elsewhere.
    """
    names = [name.strip() for name in config.lora_target_modules.split(",")]
    redirected = [name for name in names if any(part in name for part in REDIRECTED_BY_PEFT)]
    if redirected:
        raise ConfigError(
            f"lora_target_modules names {', '.join(redirected)}; adapters go on attention only "
            f"(attention, or some of {', '.join(ATTENTION)})"
        )
    targets = [
        name for target in names for name in (ATTENTION if target == "attention" else [target])
    ]
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put adapters on the chosen modules and freeze everything else.

    Raises:
        ConfigError: a target matches no module.
    """
    torch.manual_seed(seed)  # every rank must draw the same initial adapters
    try:
        peft.inject_adapter_in_model(adapter_config(config), model)
    except ValueError as error:
        raise ConfigError(
            f"lora_target_modules is {config.lora_target_modules}: {error}"
        ) from error


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the base model."""
    return ".lora_" in parameter_name
