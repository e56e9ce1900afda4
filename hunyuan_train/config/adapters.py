"""Where adapters go, by name, and which settings go together there."""

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError

LINEAR_PRESETS = ("attention", "shared_mlp", "router")
ATTENTION_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")  # names that mean one thing only
EXPERTS = "experts"

# Rows of a grouped product must be 16 bytes long or a multiple, and a row may be one rank long.
EXPERT_RANK_MULTIPLE = 8


def target_names(config: LoraConfig) -> list[str]:
    """The targets asked for, "all" spelled out.

    Raises:
        ConfigError: a name that is neither a preset nor a projection of attention.
    """
    names = [name.strip() for name in config.lora_target_modules.split(",") if name.strip()]
    known = (*LINEAR_PRESETS, EXPERTS, "all", *ATTENTION_NAMES)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"lora_target_modules is {config.lora_target_modules!r}; name some of "
            f"{', '.join(known)}, comma-separated"
        )
    return [*LINEAR_PRESETS, EXPERTS] if "all" in names else names


def adapts_experts(config: LoraConfig) -> bool:
    """Whether the routed experts get adapters."""
    return config.use_lora and EXPERTS in target_names(config)


def check_targets(config: LoraConfig) -> None:
    """Refuse targets that do not exist, or that plain PEFT could not load again.

    Raises:
        ConfigError: naming the target.
    """
    names = target_names(config)
    if config.use_dora and "shared_mlp" in names:
        raise ConfigError(
            "use_dora is true and lora_target_modules includes shared_mlp; PEFT 0.21 can load "
            "adapters of the shared expert by parameter only, which DoRA has not: leave shared_mlp "
            "out, or set use_dora false"
        )


def check_expert_adapters(config: LoraConfig, *, is_split: bool) -> None:
    """Refuse what adapters on the routed experts cannot have.

    Args:
        config: with adapters on experts.
        is_split: whether the DeepSpeed file turns expert parallelism on (size 1 counts).

    Raises:
        ConfigError: naming the first such setting.
    """
    if config.lora_rank % EXPERT_RANK_MULTIPLE:
        raise ConfigError(
            f"lora_rank is {config.lora_rank}; adapters on experts need a multiple of "
            f"{EXPERT_RANK_MULTIPLE}, because grouped products read rows of 16 bytes"
        )
    if config.lora_dropout or config.use_dora:
        raise ConfigError(
            "lora_dropout and use_dora do not exist for adapters on experts (nor in PEFT); set "
            "lora_dropout 0 and use_dora false, or leave experts out of lora_target_modules"
        )
    if not is_split:
        raise ConfigError(
            "lora_target_modules includes the routed experts, which are adapted in the engine's "
            "expert-parallel layer only; use --deepspeed ds_configs/zero3_ep.json (an "
            "expert_parallel_size of 1 will do)"
        )
