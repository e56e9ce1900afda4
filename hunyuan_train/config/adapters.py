"""Where adapters go, by kind of tensor, and which settings go together there."""

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import modules_of_kind
from hunyuan_train.families.tensors import Kind

# What lora_target_modules calls each kind, in the order of a layer.
TARGETS = {
    "attention": Kind.ATTENTION,
    "mlp": Kind.MLP,
    "shared_mlp": Kind.SHARED_EXPERT,
    "router": Kind.ROUTER,
    "experts": Kind.EXPERT,
}

# Rows of a grouped product must be 16 bytes long or a multiple, and a row may be one rank long.
EXPERT_RANK_MULTIPLE = 8


def adapted_modules(config: LoraConfig, shape: ModelShape) -> dict[str, Kind]:
    """What is adapted in a layer: released names of its modules, without the layer's, by kind.

    Routed experts are one module, that of all experts.

    Raises:
        ConfigError: a name that is neither a kind that the model has nor a projection of attention.
    """
    if not config.use_lora:
        return {}
    modules = {kind: list(modules_of_kind(shape, kind)) for kind in TARGETS.values()}
    # Names of attention's projections mean one thing only.
    single = {name.rpartition(".")[2]: name for name in modules[Kind.ATTENTION]}
    known = [name for name, kind in TARGETS.items() if modules[kind]]
    names = [name.strip() for name in config.lora_target_modules.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*known, "all", *single)]
    if unknown or not names:
        raise ConfigError(
            f"lora_target_modules is {config.lora_target_modules!r}; name some of "
            f"{', '.join((*known, 'all', *single))}, comma-separated"
        )
    chosen: dict[str, Kind] = {}
    for name in known if "all" in names else names:
        kind = TARGETS.get(name, Kind.ATTENTION)
        found = [single[name]] if name in single else modules[kind]
        chosen |= dict.fromkeys(found, kind)
    return chosen


def adapts_kind(config: LoraConfig, shape: ModelShape, kind: Kind) -> bool:
    """Whether tensors of a kind get adapters."""
    return kind in adapted_modules(config, shape).values()


def adapts_experts(config: LoraConfig, shape: ModelShape) -> bool:
    """Whether the routed experts get adapters."""
    return adapts_kind(config, shape, Kind.EXPERT)


def check_targets(config: LoraConfig, shape: ModelShape) -> None:
    """Refuse targets that do not exist, or that plain PEFT could not load again.

    Raises:
        ConfigError: naming the target.
    """
    by_parameter = family_of(shape).peft_by_parameter
    kinds = adapted_modules(config, shape).values()
    for name, kind in TARGETS.items():
        if config.use_dora and kind in kinds and kind in by_parameter:
            raise ConfigError(
                f"use_dora is true and lora_target_modules includes {name}; PEFT 0.21 can load "
                f"adapters of the {kind} by parameter only, which DoRA has not: leave {name} "
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
