"""Turns every "auto" that decides how processes divide the model into a value."""

from dataclasses import dataclass, replace
from math import gcd

from hunyuan_train.config.adapters import adapts_experts
from hunyuan_train.config.deepspeed_config import (
    choose_file,
    offloads_optimizer,
    read_deepspeed_file,
    splits_experts,
)
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.optim.records import choose_optimizer, find_optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this machine offers to a run."""

    num_gpus: int
    num_cores: int
    gpu_memory: int = 0  # bytes of its smallest GPU; 0: unknown
    host_memory: int = 0  # bytes that its processes may take together; 0: unknown


def resolve_config(config: RunConfig, *, machine: Machine, shape: ModelShape) -> RunConfig:
    """The same run with processes, expert groups, DeepSpeed file, optimizer and precision decided.

    Resolving twice changes nothing, so ranks may do it again on the resolved file.
    """
    num_processes = choose_num_processes(config, machine)
    expert_size = choose_expert_size(config, num_processes, shape.num_experts)
    optimizer, path = config.optimizer.optimizer, config.parallel.deepspeed
    if path == "auto":
        is_split = expert_size > 1 or adapts_experts(config.lora, shape)
        is_on_host = optimizer != "auto" and find_optimizer(optimizer).is_on_host
        path = choose_file(is_split=is_split, is_offloaded=is_on_host)
    if optimizer == "auto":
        optimizer = choose_optimizer(is_on_host=offloads_optimizer(read_deepspeed_file(path)))
    is_bf16 = machine.num_gpus > 0 if config.train.bf16 == "auto" else config.train.bf16
    return replace(
        config,
        train=replace(config.train, bf16=is_bf16),
        optimizer=replace(config.optimizer, optimizer=optimizer),
        parallel=replace(
            config.parallel,
            num_processes=num_processes,
            expert_parallel_size=expert_size,
            deepspeed=path,
        ),
    )


def choose_num_processes(config: RunConfig, machine: Machine) -> int:
    """As asked; else one process per GPU; else two on the CPU, where there are two cores."""
    if config.parallel.num_processes != "auto":
        return config.parallel.num_processes
    return machine.num_gpus or min(2, machine.num_cores)


def choose_expert_size(config: RunConfig, num_processes: int, num_experts: int) -> int:
    """As asked; else the largest group that divides both; one where the file splits no experts."""
    if config.parallel.expert_parallel_size != "auto":
        return config.parallel.expert_parallel_size
    path = config.parallel.deepspeed
    if path != "auto" and not splits_experts(read_deepspeed_file(path)):
        return 1
    return gcd(num_processes, num_experts) if num_experts else 1
