"""Freeze the parameters that are not trained, when not all of them are."""

from transformers import PreTrainedModel

from hunyuan_train.config.freezing import is_frozen
from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import kind_of


def freeze_parameters(model: PreTrainedModel, config: ModelConfig) -> None:
    """Freeze by the names of Transformers' model, before the engine splits and renames anything."""
    family = FAMILIES[model.config.model_type]
    for name, parameter in model.named_parameters():
        if is_frozen(name, kind_of(family, name), config):
            parameter.requires_grad = False
