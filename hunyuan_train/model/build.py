"""Build the model that trains, empty, and choose what in it is trained."""

import torch
from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM
from transformers.initialization import no_init_weights

from hunyuan_train.model.loss import LossHead
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
    LossHead.install(model.lm_head)
    return model


def compute_rope_in_float32(model: HunYuanMoEV1ForCausalLM) -> None:
    """Compute the rope frequencies again, outside of any partitioned construction.

    The engine's construction context makes every new tensor bfloat16, in which the frequencies
    would be 340 radians off at position 262,143.
    """
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
