"""Which parameters a run does not train, told by their names alone, without torch."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.errors import ConfigError

ROUTERS = "*.mlp.gate.wg.weight"
ATTENTION = "*.self_attn.*"


def is_frozen(name: str, config: ModelConfig) -> bool:
    """Whether a parameter, by the name that Transformers' model gives it, is not trained."""
    if config.train_attention_params_only and not fnmatchcase(name, ATTENTION):
        return True
    return any(fnmatchcase(name, pattern) for pattern in _patterns(config))


def check_freezing(names: Sequence[str], config: ModelConfig) -> None:
    """Refuse what freezes nothing, or everything.

    Args:
        names: of all parameters of Transformers' model.
        config: what is frozen in it.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    for pattern in _patterns(config):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freeze has the pattern {pattern!r}, which matches no parameter; names look like "
                f"{names[0]} and {names[-1]}"
            )
    if all(is_frozen(name, config) for name in names):
        raise ConfigError(
            f"freeze is {config.freeze!r}, which leaves nothing to train; freeze less"
        )


def _patterns(config: ModelConfig) -> list[str]:
    patterns = [pattern.strip() for pattern in (config.freeze or "").split(",") if pattern.strip()]
    return [*patterns, ROUTERS] if config.freeze_router else patterns
