"""Which parameters a run does not train, told by their names and kinds alone, without torch."""

from fnmatch import fnmatchcase

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind

ATTENTION = (Kind.ATTENTION, Kind.HEAD_NORM)


def is_frozen(name: str, kind: Kind, config: ModelConfig) -> bool:
    """Whether a parameter, by the name that Transformers' model gives it, is not trained."""
    if config.train_attention_params_only and kind not in ATTENTION:
        return True
    if config.freeze_router and kind is Kind.ROUTER:
        return True
    return any(fnmatchcase(name, pattern) for pattern in _patterns(config))


def check_freezing(shape: ModelShape, config: ModelConfig) -> None:
    """Refuse what freezes nothing, or everything.

    Args:
        shape: of the model.
        config: what is frozen in it.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    parameters = model_parameters(shape)
    for pattern in _patterns(config):
        if not any(fnmatchcase(one.name, pattern) for one in parameters):
            raise ConfigError(
                f"freeze has the pattern {pattern!r}, which matches no parameter; names look like "
                f"{parameters[0].name} and {parameters[-1].name}"
            )
    if all(is_frozen(one.name, one.kind, config) for one in parameters):
        raise ConfigError(
            f"freeze is {config.freeze!r}, which leaves nothing to train; freeze less"
        )


def _patterns(config: ModelConfig) -> list[str]:
    return [pattern.strip() for pattern in (config.freeze or "").split(",") if pattern.strip()]
