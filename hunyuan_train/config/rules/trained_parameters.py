"""Rules about what is trained: adapters, frozen parameters, routers."""

from fnmatch import fnmatchcase

from hunyuan_train.config.adapters import TARGETS, adapted_modules, adapts_experts, adapts_kind
from hunyuan_train.config.freezing import freeze_patterns, is_frozen
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.tables import count_kind, model_parameters
from hunyuan_train.families.tensors import Kind

# Rows of a grouped product must be 16 bytes long or a multiple, and a row may be one rank long.
EXPERT_RANK_MULTIPLE = 8


def check_adapters_are_used(run: ResolvedRun) -> None:
    """Refuse adapter settings of a run without adapters."""
    lora = run.config.lora
    if not lora.use_lora and lora != LoraConfig():
        raise ConfigError(
            "lora settings are given but use_lora is false, so every parameter would be trained; "
            "add --use_lora, or drop them"
        )


def check_adapters_alone(run: ResolvedRun) -> None:
    """Refuse to freeze what adapters freeze anyway."""
    model = run.config.model
    freezes = model.freeze or model.freeze_router or model.train_attention_params_only
    if run.config.lora.use_lora and freezes:
        raise ConfigError(
            "use_lora is true, which freezes everything but the adapters; drop --freeze, "
            "--freeze_router and --train_attention_params_only, and choose what is adapted with "
            "--lora_target_modules"
        )


def check_adapter_targets(run: ResolvedRun) -> None:
    """Refuse targets that do not exist, or that plain PEFT could not load again."""
    lora = run.config.lora
    by_parameter = family_of(run.shape).peft_by_parameter
    kinds = adapted_modules(lora, run.shape).values()
    for name, kind in TARGETS.items():
        if lora.use_dora and kind in kinds and kind in by_parameter:
            raise ConfigError(
                f"use_dora is true and lora_target_modules includes {name}; PEFT 0.21 can load "
                f"adapters of the {kind} by parameter only, which DoRA has not: leave {name} "
                "out, or set use_dora false"
            )


def check_expert_adapters(run: ResolvedRun) -> None:
    """Refuse what adapters on the routed experts cannot have."""
    lora, moe = run.config.lora, family_of(run.shape).moe
    is_bare = moe is not None and not moe.router.projection  # the router is no linear layer
    if is_bare and adapts_kind(lora, run.shape, Kind.ROUTER) and not run.splits_experts:
        raise ConfigError(
            "lora_target_modules includes the router, which in this model is adapted in the "
            "engine's expert-parallel layer only; use --deepspeed ds_configs/zero3_ep.json (an "
            "expert_parallel_size of 1 will do), or leave router out"
        )
    if not adapts_experts(lora, run.shape):
        return
    if lora.lora_rank % EXPERT_RANK_MULTIPLE:
        raise ConfigError(
            f"lora_rank is {lora.lora_rank}; adapters on experts need a multiple of "
            f"{EXPERT_RANK_MULTIPLE}, because grouped products read rows of 16 bytes"
        )
    if lora.lora_dropout or lora.use_dora:
        raise ConfigError(
            "lora_dropout and use_dora do not exist for adapters on experts (nor in PEFT); set "
            "lora_dropout 0 and use_dora false, or leave experts out of lora_target_modules"
        )
    if not run.splits_experts:
        raise ConfigError(
            "lora_target_modules includes the routed experts, which are adapted in the engine's "
            "expert-parallel layer only; use --deepspeed ds_configs/zero3_ep.json (an "
            "expert_parallel_size of 1 will do)"
        )


def check_expert_weights(run: ResolvedRun) -> None:
    """Refuse quantised experts that would be trained, exported or left whole."""
    kept, stored = run.config.model.expert_weights, run.shape.stored_as
    if stored and not run.config.lora.use_lora:
        raise ConfigError(
            f"model_name_or_path is {run.config.model.model_name_or_path}, whose weights are "
            f"quantised ({stored}), and use_lora is false; a quantised base is trained with "
            "adapters only: add --use_lora, or give the model in bfloat16"
        )
    if kept == "bf16" or not run.shape.num_experts:
        return
    if (kept == "base") != bool(stored):
        have = f"stores them as {stored} already" if stored else "has them in full precision"
        instead = "auto or bf16" if stored else "fp8, int4, nf4 or bf16"
        raise ConfigError(
            f"expert_weights is {kept}, and the base {have}; use --expert_weights {instead}"
        )
    if not run.config.lora.use_lora:
        raise ConfigError(
            f"expert_weights is {kept} and use_lora is false; codes have no gradient, and a run "
            "without adapters exports every weight, so that experts which it freezes stay whole, "
            "too: add --use_lora, or use --expert_weights bf16"
        )
    if not run.splits_experts:
        raise ConfigError(
            f"expert_weights is {kept}, which the engine's expert-parallel layer alone computes "
            f"with, and {run.engine_path} has no enabled expert_parallel section; use --deepspeed "
            "ds_configs/zero3_ep.json (an expert_parallel_size of 1 will do)"
        )


def check_freezing(run: ResolvedRun) -> None:
    """Refuse what freezes nothing, or everything."""
    model, parameters = run.config.model, model_parameters(run.shape)
    for pattern in freeze_patterns(model):
        if not any(fnmatchcase(one.name, pattern) for one in parameters):
            raise ConfigError(
                f"freeze has the pattern {pattern!r}, which matches no parameter; names look like "
                f"{parameters[0].name} and {parameters[-1].name}"
            )
    if not model.add_tokens and all(is_frozen(one.name, one.kind, model) for one in parameters):
        raise ConfigError(f"freeze is {model.freeze!r}, which leaves nothing to train; freeze less")


def check_router_guardian(run: ResolvedRun) -> None:
    """Refuse a router_guardian that would freeze what is frozen."""
    if run.config.guardian.router_guardian == "freeze_router" and not trains_routers(run):
        raise ConfigError(
            "router_guardian is freeze_router, but this run does not train the routers; use "
            "--router_guardian warn, aux_loss or stop"
        )


def check_experts_exist(run: ResolvedRun) -> None:
    """Refuse settings of routers and routed experts for a model that has none."""
    if count_kind(run.shape, Kind.ROUTER):
        return
    model = run.config.model
    asked = {
        "router_aux_loss_coef": (model.router_aux_loss_coef, 0.0),
        "router_z_loss_coef": (model.router_z_loss_coef, 0.0),
        "freeze_router": (model.freeze_router, False),
        "moe_chunks": (run.config.train.moe_chunks, 1),
        "expert_weights": (model.expert_weights, "bf16"),
    }
    for name, (value, usual) in asked.items():
        if value != usual:
            raise ConfigError(
                f"{name} is {value}, and this model has no routed experts; drop --{name}"
            )


def check_router_losses(run: ResolvedRun) -> None:
    """Refuse terms for routers that are balanced by a bias, as the model was trained."""
    moe = family_of(run.shape).moe
    if moe is None or moe.router.scores == "softmax":
        return
    model = run.config.model
    if model.router_aux_loss_coef or model.router_z_loss_coef:
        raise ConfigError(
            f"router_aux_loss_coef is {model.router_aux_loss_coef} and router_z_loss_coef is "
            f"{model.router_z_loss_coef}, which are terms of a softmax over experts; the routers "
            "of this model have sigmoid scores and a bias that balances them: leave both at 0"
        )
    if run.config.guardian.router_guardian == "aux_loss":
        raise ConfigError(
            "router_guardian is aux_loss, and the routers of this model have no such loss; use "
            "--router_guardian warn, freeze_router or stop"
        )


def trains_routers(run: ResolvedRun) -> bool:
    """Whether any router, or an adapter on it, is trained."""
    if run.config.lora.use_lora:
        return Kind.ROUTER in adapted_modules(run.config.lora, run.shape).values()
    routers = [one for one in model_parameters(run.shape) if one.kind is Kind.ROUTER]
    return not all(is_frozen(one.name, one.kind, run.config.model) for one in routers)
