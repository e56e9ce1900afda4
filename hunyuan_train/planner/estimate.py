"""The whole plan of a run, and whether the hardware can hold it."""

from dataclasses import dataclass, replace

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.plain_text import count_of
from hunyuan_train.planner.component import Component, Phase, fullest_moment, lines_at
from hunyuan_train.planner.disk import Disk, plan_disk
from hunyuan_train.planner.exchanges import can_be_skewed
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.memory import BALANCED, Memory, plan_memory
from hunyuan_train.planner.speed import Speed, plan_speed

DISK = "the disk"
SKEW_STEP = 0.01  # to which the largest skew that fits is found


@dataclass(frozen=True, slots=True)
class Shortage:
    """A limit that a run exceeds."""

    what: str
    needed: int
    available: int
    parts: tuple[Component, ...]

    @property
    def is_of_disk(self) -> bool:
        """Whether it is room on a disk that lacks, which no smaller step makes up for."""
        return self.what == DISK


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs, beside what the hardware has."""

    run: ResolvedRun
    hardware: Hardware
    memory: Memory  # of a skewed step, which the verdict is about
    disk: Disk

    @property
    def balanced(self) -> Memory:
        """Of a step in which all experts get as much."""
        return plan_memory(self.run, imbalance=BALANCED)

    @property
    def most_skew(self) -> float | None:
        """The largest skew of experts with which a step fits a GPU.

        None where that is not known or experts cannot be skewed. 0: not even a balanced step fits.
        """
        room, most = self.run.machine.gpu_memory, float(self.run.expert_size)
        if not (self.run.is_on_gpu and room and can_be_skewed(self.run)):
            return None

        def fits(skew: float) -> bool:
            return plan_memory(self.run, imbalance=skew).device_peak <= room

        if fits(most):
            return most
        if not fits(BALANCED):
            return 0.0
        low, high = BALANCED, most
        while high - low > SKEW_STEP:
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    @property
    def speed(self) -> Speed:
        """Of one optimizer step, on GPUs."""
        return plan_speed(self.run, self.hardware)

    @property
    def host_per_node(self) -> int:
        """Host memory of one machine; without GPUs it holds what a GPU would."""
        ranks = self.run.ranks_per_node
        device = 0 if self.run.is_on_gpu else self.memory.device_peak
        return ranks * (self.memory.host_peak + device)

    @property
    def shortages(self) -> list[Shortage]:
        """The limits that are known and exceeded."""
        machine, memory, disk = self.run.machine, self.memory, self.hardware.disk
        found = []
        if self.run.is_on_gpu and 0 < machine.gpu_memory < memory.device_peak:
            there = lines_at(memory.device, fullest_moment(memory.device))
            found.append(Shortage("a GPU", memory.device_peak, machine.gpu_memory, there))
        if 0 < machine.host_memory < self.host_per_node:
            lines = memory.host if self.run.is_on_gpu else (*memory.device, *memory.host)
            ranks = self.run.ranks_per_node
            parts = tuple(replace(line, num_bytes=line.num_bytes * ranks) for line in lines)
            found.append(
                Shortage("a machine's host memory", self.host_per_node, machine.host_memory, parts)
            )
        if 0 < disk < self.disk.total:
            checkpoints = self.disk.num_kept * self.disk.checkpoint
            parts = (
                Component(
                    count_of(self.disk.num_kept, "checkpoint"), checkpoints, Phase.ALWAYS, ""
                ),
                Component("export", self.disk.export, Phase.ALWAYS, ""),
            )
            found.append(Shortage(DISK, self.disk.total, disk, parts))
        return found

    @property
    def lacks_disk_alone(self) -> bool:
        """Whether nothing but room on the disk is wanting."""
        return bool(self.shortages) and all(one.is_of_disk for one in self.shortages)

    @property
    def fits(self) -> bool:
        """Whether no known limit is exceeded."""
        return not self.shortages


def estimate_run(
    run: ResolvedRun,
    hardware: Hardware,
    *,
    num_data_tokens: int = 0,
    num_checkpoints: int | None = None,
) -> Estimate:
    """Plan a run; its data and the number of its checkpoints at one time may not be known."""
    memory = plan_memory(run, num_data_tokens=num_data_tokens)
    return Estimate(run, hardware, memory, plan_disk(run, num_checkpoints=num_checkpoints))
