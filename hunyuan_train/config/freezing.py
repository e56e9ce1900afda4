"""Which parameters a run does not train, told by their names and kinds alone, without torch."""

from fnmatch import fnmatchcase

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.tensors import VOCABULARY, Kind

ATTENTION = (Kind.ATTENTION, Kind.HEAD_NORM)


def is_frozen(name: str, kind: Kind, config: ModelConfig) -> bool:
    """Whether a parameter, by the name that Transformers' model gives it, is not trained."""
    if config.train_attention_params_only and kind not in ATTENTION:
        return True
    if config.freeze_router and kind is Kind.ROUTER:
        return True
    return any(fnmatchcase(name, pattern) for pattern in freeze_patterns(config))


def trains_rows(kind: Kind, config: ModelConfig) -> bool:
    """Whether some rows of a parameter are trained in any case: those of new tokens."""
    return config.add_tokens is not None and kind in VOCABULARY


def freeze_patterns(config: ModelConfig) -> list[str]:
    """The patterns of `--freeze`."""
    return [pattern.strip() for pattern in (config.freeze or "").split(",") if pattern.strip()]
