"""Which parameters are trained, when not all of them are."""

from fnmatch import fnmatchcase

from torch import nn

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import ModelConfig

ROUTERS = "*.mlp.gate.wg.weight"
SPLIT_ROUTERS = "*.mlp.router.gate.*"  # under expert parallelism; adapters on them included
ADAPTED_ROUTERS = "*.mlp.gate.wg.*"
ATTENTION = "*.self_attn.*"


def is_router(name: str) -> bool:
    """Whether a parameter belongs to a router, in any form that a model takes here."""
    return fnmatchcase(name, SPLIT_ROUTERS) or fnmatchcase(name, ADAPTED_ROUTERS)


def freeze_parameters(model: nn.Module, config: ModelConfig) -> None:
    """Freeze by the names of Transformers' model, before the engine splits and renames anything.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    patterns = [pattern.strip() for pattern in (config.freeze or "").split(",") if pattern.strip()]
    if config.freeze_router:
        patterns.append(ROUTERS)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freeze has the pattern {pattern!r}, which matches no parameter; names look like "
                f"{names[0]} and {names[-1]}"
            )
    for name, parameter in model.named_parameters():
        is_frozen = any(fnmatchcase(name, pattern) for pattern in patterns)
        is_left_out = config.train_attention_params_only and not fnmatchcase(name, ATTENTION)
        if is_frozen or is_left_out:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"freeze is {config.freeze!r}, which leaves nothing to train")
