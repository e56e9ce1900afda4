"""Freeze the parameters that are not trained, when not all of them are."""

from fnmatch import fnmatchcase

from torch import nn

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.model.frozen import check_freezing, is_frozen

SPLIT_ROUTERS = "*.mlp.router.gate.*"  # under expert parallelism; adapters on them included
ADAPTED_ROUTERS = "*.mlp.gate.wg.*"


def is_router(name: str) -> bool:
    """Whether a parameter belongs to a router, in any form that a model takes here."""
    return fnmatchcase(name, SPLIT_ROUTERS) or fnmatchcase(name, ADAPTED_ROUTERS)


def freeze_parameters(model: nn.Module, config: ModelConfig) -> None:
    """Freeze by the names of Transformers' model, before the engine splits and renames anything.

    Raises:
        ConfigError: see `check_freezing`.
    """
    parameters = dict(model.named_parameters())
    check_freezing(list(parameters), config)
    for name, parameter in parameters.items():
        if is_frozen(name, config):
            parameter.requires_grad = False
