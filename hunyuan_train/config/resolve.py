"""From the settings that were asked for to a run: every "auto" decided, every rule checked."""

from collections.abc import Collection, Sequence
from math import gcd

from hunyuan_train.config.adapters import adapts_experts
from hunyuan_train.config.deepspeed_file import (
    choose_file,
    offloads_optimizer,
    read_deepspeed_file,
    splits_experts,
)
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import EVERYTHING, Needs, check_run
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.optim.records import choose_optimizer, find_optimizer


def resolve(
    config: RunConfig,
    *,
    shape: ModelShape,
    machine: Machine,
    slots: Sequence[int] = (),
    known: Collection[Needs] = EVERYTHING,
) -> ResolvedRun:
    """Decide on processes, expert groups, DeepSpeed file, optimizer and precision; check it all.

    Resolving twice changes nothing, so ranks may do it again on the resolved settings.

    Args:
        config: as it was asked for.
        shape: of its model.
        machine: what each host offers.
        slots: processes on each host; default: one host, with as many as the settings say.
        known: what rules may look at; those that need more are left out.

    Raises:
        ConfigError: the first rule that it breaks.
    """
    slots = tuple(slots) or (choose_num_processes(config, machine),)
    path = config.parallel.deepspeed
    engine = None if path == "auto" else read_deepspeed_file(path)
    expert_size = config.parallel.expert_parallel_size
    if expert_size == "auto":
        is_split = shape.num_experts > 0 and (engine is None or splits_experts(engine))
        # Groups stay inside a host, so the largest one divides the processes of every host.
        expert_size = gcd(*slots, shape.num_experts) if is_split else 1
    if config.model.expert_weights == "auto":  # `planner/gentlest.py` has chosen before, if it may
        is_kept = bool(shape.stored_as and shape.num_experts)
        config = with_settings(config, expert_weights="base" if is_kept else "bf16")
    if engine is None:
        path = choose_deepspeed_file(config, shape, expert_size=expert_size)
        engine = read_deepspeed_file(path)
    optimizer = config.optimizer.optimizer
    if optimizer == "auto":
        optimizer = choose_optimizer(is_on_host=offloads_optimizer(engine))
    is_bf16 = machine.num_gpus > 0 if config.train.bf16 == "auto" else config.train.bf16
    if config.lora.use_lora:
        config = with_settings(config, lora_alpha=config.lora.alpha)
    decided = with_settings(
        config,
        num_processes=slots[0],
        expert_parallel_size=expert_size,
        deepspeed=path,
        optimizer=optimizer,
        bf16=is_bf16,
    )
    run = ResolvedRun(config=decided, shape=shape, engine=engine, machine=machine, slots=slots)
    check_run(run, known)
    return run


def choose_num_processes(config: RunConfig, machine: Machine) -> int:
    """As asked; else one process per GPU; else two on the CPU, where there are two cores."""
    if config.parallel.num_processes != "auto":
        return config.parallel.num_processes
    return machine.num_gpus or min(2, machine.num_cores)


def choose_deepspeed_file(config: RunConfig, shape: ModelShape, *, expert_size: int) -> str:
    """The file of ours that splits experts and offloads as the settings want it."""
    optimizer = config.optimizer.optimizer
    return choose_file(
        is_split=expert_size > 1
        or adapts_experts(config.lora, shape)
        or (shape.num_experts > 0 and config.model.expert_weights not in ("auto", "bf16")),
        is_offloaded=optimizer != "auto" and find_optimizer(optimizer).is_on_host,
    )
