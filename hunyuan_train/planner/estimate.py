"""The whole plan of a run, and whether the hardware can hold it."""

from dataclasses import dataclass, replace

from hunyuan_train.config.deepspeed_config import build_deepspeed_config
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.config.rules import (
    check_activations,
    check_deepspeed_file,
    check_experts_divide,
    check_lora,
    check_optimizer,
)
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.sequences import check_sequence_size, check_sequences
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.planner.component import Component, Phase
from hunyuan_train.planner.disk import Disk, plan_disk
from hunyuan_train.planner.layout import Layout, make_layout
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.memory import Memory, plan_memory
from hunyuan_train.planner.speed import Speed, plan_speed


@dataclass(frozen=True, slots=True)
class Shortage:
    """A limit that a run exceeds."""

    what: str
    needed: int
    available: int
    parts: tuple[Component, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs, beside what the hardware has."""

    layout: Layout
    hardware: Hardware
    memory: Memory
    disk: Disk

    @property
    def speed(self) -> Speed:
        """Of one optimizer step, on GPUs."""
        return plan_speed(self.layout, self.hardware)

    @property
    def host_per_node(self) -> int:
        """Host memory of one machine; without GPUs it holds what a GPU would."""
        ranks = self.layout.ranks_per_node
        device = 0 if self.layout.is_on_gpu else self.memory.device_peak
        return ranks * (self.memory.host_peak + device)

    @property
    def shortages(self) -> list[Shortage]:
        """The limits that are known and exceeded."""
        hardware, memory = self.hardware, self.memory
        found = []
        if self.layout.is_on_gpu and 0 < hardware.gpu_memory < memory.device_peak:
            found.append(Shortage("a GPU", memory.device_peak, hardware.gpu_memory, memory.device))
        if 0 < hardware.host_memory < self.host_per_node:
            lines = memory.host if self.layout.is_on_gpu else (*memory.device, *memory.host)
            ranks = self.layout.ranks_per_node
            parts = tuple(replace(line, num_bytes=line.num_bytes * ranks) for line in lines)
            found.append(
                Shortage("a machine's host memory", self.host_per_node, hardware.host_memory, parts)
            )
        if 0 < hardware.disk < self.disk.total:
            checkpoints = self.disk.num_kept * self.disk.checkpoint
            parts = (
                Component(f"{self.disk.num_kept} checkpoints", checkpoints, Phase.ALWAYS, ""),
                Component("export", self.disk.export, Phase.ALWAYS, ""),
            )
            found.append(Shortage("the disk", self.disk.total, hardware.disk, parts))
        return found

    @property
    def fits(self) -> bool:
        """Whether no known limit is exceeded."""
        return not self.shortages


def estimate_run(
    config: RunConfig, shape: ModelShape, hardware: Hardware, *, num_data_tokens: int = 0
) -> Estimate:
    """Plan a resolved run."""
    layout = make_layout(
        config,
        shape,
        num_nodes=hardware.num_nodes,
        is_on_gpu=hardware.gpus_per_node > 0,
        num_ranks=hardware.num_ranks,
    )
    memory = plan_memory(layout, num_data_tokens=num_data_tokens)
    return Estimate(layout, hardware, memory, plan_disk(layout))


def resolve_for(config: RunConfig, shape: ModelShape, hardware: Hardware) -> RunConfig:
    """The run with every "auto" decided as it would be on one of the machines.

    Raises:
        ConfigError: settings that do not go together.
    """
    machine = Machine(num_gpus=hardware.gpus_per_node, num_cores=hardware.gpus_per_node)
    resolved = resolve_config(config, machine=machine, shape=shape)
    num_processes = int(resolved.parallel.num_processes)
    check_experts_divide(
        int(resolved.parallel.expert_parallel_size),
        num_experts=shape.num_experts,
        num_processes=num_processes,
    )
    check_sequence_size(
        resolved,
        num_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_ranks=num_processes * hardware.num_nodes,
    )
    check_sequences(resolved)
    check_activations(resolved.train)
    check_lora(resolved, shape)
    check_deepspeed_file(resolved)
    check_optimizer(resolved)
    build_deepspeed_config(
        resolved, world_size=num_processes * hardware.num_nodes, is_bf16=resolved.train.bf16 is True
    )
    return resolved
