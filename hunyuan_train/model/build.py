"""Build the model that trains, empty, and choose what in it is trained."""

import torch
from torch import nn
from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM
from transformers.initialization import no_init_weights

from hunyuan_train.model.shape import ModelShape, native_config_dict


def build_model(
    shape: ModelShape, *, attention: str, attention_dropout: float
) -> HunYuanMoEV1ForCausalLM:
    """Construct Transformers' model with uninitialised weights, to be filled from a source."""
    fields = native_config_dict(shape) | {"attention_dropout": attention_dropout}
    config = HunYuanMoEV1Config(**fields, use_cache=False)
    config._attn_implementation = attention
    with no_init_weights():
        model = HunYuanMoEV1ForCausalLM(config)
    model.tie_weights()
    check_rope_precision(model)
    return model


def check_rope_precision(model: nn.Module) -> None:
    """Rope frequencies in bfloat16 would be 340 radians off at position 262,143."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            assert buffer.dtype == torch.float32, f"{name} became {buffer.dtype}"
