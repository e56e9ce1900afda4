"""Write trained adapters as a PEFT folder, which plain PEFT loads on the plain base model."""

import logging
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from safetensors.torch import save_file

from hunyuan_train.checkpoint.folder import INCOMPLETE, publish
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.model.lora import adapter_config, is_adapter

logger = logging.getLogger(__name__)

# PEFT's names for `model.layers.0.self_attn.q_proj.lora_A.default.weight` and the like.
PREFIX, ADAPTER_NAME = "base_model.model.", ".default"


def export_adapter(
    engine: deepspeed.DeepSpeedEngine, folder: Path, config: LoraConfig, *, base_model: str
) -> None:
    """Write the adapters' weights and description; called by every rank.

    Adapters are small (0.2 % of the model at rank 64), so rank 0 gathers them.

    Args:
        engine: between two steps.
        folder: the final folder; it appears, or is replaced, only once it is whole.
        config: what the adapters were made with.
        base_model: the model they belong on, for adapter_config.json.
    """
    adapters = {
        name: parameter
        for name, parameter in engine.module.named_parameters()
        if is_adapter(name)
    }
    with deepspeed.zero.GatheredParameters(list(adapters.values())):
        if dist.get_rank() == 0:
            unfinished = folder.with_name(folder.name + INCOMPLETE)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            tensors = {
                PREFIX + name.replace(ADAPTER_NAME, ""): parameter.detach().cpu().contiguous()
                for name, parameter in adapters.items()
            }
            save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
            description = adapter_config(config)
            description.base_model_name_or_path = base_model
            description.inference_mode = True
            description.save_pretrained(unfinished)
            publish(unfinished, folder)
    dist.barrier()
    logger.info("exported adapters to %s", folder)
