"""A run in which every "auto" is decided, with all that its rules and its plan are made from."""

from dataclasses import dataclass
from math import gcd
from typing import Any

from hunyuan_train.config.deepspeed_file import splits_experts, zero_number, zero_stage
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.optim.records import OptimizerRecord, find_optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What each host offers to a run, at least."""

    num_gpus: int
    num_cores: int
    gpu_memory: int = 0  # bytes of its smallest GPU; 0: unknown
    host_memory: int = 0  # bytes that its processes may take together; 0: unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedRun:
    """Made by `resolve`, which runs the rules: what is in one goes together."""

    config: RunConfig  # nothing that decides how the model is divided is "auto"
    shape: ModelShape
    engine: dict[str, Any]  # the DeepSpeed file as it was read; what is "auto" there is unfilled
    machine: Machine
    slots: tuple[int, ...]  # processes on each host, that of rank 0 first

    @property
    def engine_path(self) -> str:
        """Where that file lies."""
        return self.config.parallel.deepspeed

    @property
    def zero_section(self) -> dict[str, Any]:
        """What it says of ZeRO."""
        return dict(self.engine.get("zero_optimization", {}))

    @property
    def num_nodes(self) -> int:
        """Hosts."""
        return len(self.slots)

    @property
    def num_ranks(self) -> int:
        """Processes on all hosts."""
        return sum(self.slots)

    @property
    def ranks_per_node(self) -> int:
        """Processes on the host that has most; plans are made for that one."""
        return max(self.slots)

    @property
    def host_divisor(self) -> int:
        """What divides the processes of every host, so that expert groups stay inside one."""
        return gcd(*self.slots)

    @property
    def is_on_gpu(self) -> bool:
        """Whether each process has a GPU; otherwise all is host memory."""
        return self.machine.num_gpus > 0

    @property
    def is_bf16(self) -> bool:
        """Whether weights and activations are bfloat16."""
        return self.config.train.bf16 is True

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.is_bf16 else 4

    @property
    def optimizer(self) -> OptimizerRecord:
        """What is known of its optimizer."""
        return find_optimizer(self.config.optimizer.optimizer)

    @property
    def stage(self) -> int:
        """The stage of ZeRO."""
        return zero_stage(self.engine)

    @property
    def splits_experts(self) -> bool:
        """Whether the engine's expert-parallel layer is used, be its size 1."""
        return splits_experts(self.engine)

    @property
    def expert_size(self) -> int:
        """Ranks that share one full set of experts."""
        return int(self.config.parallel.expert_parallel_size)

    @property
    def sequence_size(self) -> int:
        """Ranks that share each row."""
        return self.config.parallel.sequence_parallel_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one rank in one micro-step, at most: rows are packed."""
        row = self.config.train.per_device_train_batch_size * self.config.data.max_seq_length
        return -(-row // self.sequence_size)

    def zero_number(self, name: str) -> int:
        """A number of the DeepSpeed file's ZeRO section, or the engine's default."""
        return zero_number(self.engine, name)
