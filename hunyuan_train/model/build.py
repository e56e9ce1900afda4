"""Build the model that trains, empty, and choose what in it is trained."""

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hunyuan_train.config.freezing import is_frozen
from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.registry import FAMILIES, family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import kind_of
from hunyuan_train.model.loss import LossHead


def native_config(shape: ModelShape, **settings: object) -> PreTrainedConfig:
    """Transformers' own config of a model."""
    fields = family_of(shape).native_config(shape) | settings
    return AutoConfig.for_model(shape.family, **fields)


def model_class(shape: ModelShape) -> type[PreTrainedModel]:
    """Transformers' own class of a model."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(native_config(shape))]


def build_model(shape: ModelShape, *, attention: str, attention_dropout: float) -> PreTrainedModel:
    """Construct Transformers' model with uninitialised weights, to be filled from a source."""
    config = native_config(shape, attention_dropout=attention_dropout, use_cache=False)
    config._attn_implementation = attention
    with no_init_weights():
        model = model_class(shape)(config)
    model.tie_weights()
    LossHead.install(model.lm_head)
    return model


def freeze_parameters(model: PreTrainedModel, config: ModelConfig) -> None:
    """Freeze by the names of Transformers' model, before the engine splits and renames anything."""
    family = FAMILIES[model.config.model_type]
    for name, parameter in model.named_parameters():
        if is_frozen(name, kind_of(family, name), config):
            parameter.requires_grad = False


def compute_rope_in_float32(model: PreTrainedModel, device: torch.device | str = "cpu") -> None:
    """Compute the rope frequencies again, outside of any partitioned construction.

    The engine's construction context makes every new tensor bfloat16, in which the frequencies
    would be 340 radians off at position 262,143.

    Args:
        model: whose frequencies are replaced.
        device: that they are moved to once they are computed, on the CPU as ever. Left there, they
            would be copied in every forward pass.
    """
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(device)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
