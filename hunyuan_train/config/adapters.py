"""Where adapters go, by kind of tensor."""

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
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
        hint = "; all-linear of other tools is all here" if "all-linear" in unknown else ""
        raise ConfigError(
            f"lora_target_modules is {config.lora_target_modules!r}; name some of "
            f"{', '.join((*known, 'all', *single))}, comma-separated{hint}"
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
