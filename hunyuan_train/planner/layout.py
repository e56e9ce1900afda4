"""How a run divides a model: all that the plan's arithmetic depends on, in one place."""

from dataclasses import dataclass
from typing import Any

from hunyuan_train.config.deepspeed_config import read_deepspeed_file, splits_experts, zero_stage
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.optim.records import OptimizerRecord, find_optimizer

# DeepSpeed's own defaults (runtime/zero/config.py), for what a file leaves out.
ENGINE_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A resolved run of a model on a number of machines, seen from the one with most processes."""

    config: RunConfig
    shape: ModelShape
    num_nodes: int
    num_ranks: int  # processes on all machines
    is_on_gpu: bool
    stage: int  # of ZeRO
    splits_experts: bool  # the engine's expert-parallel layer is used, be its size 1
    engine: dict[str, Any]  # the zero_optimization section of the DeepSpeed file

    @property
    def ranks_per_node(self) -> int:
        """Processes on that machine."""
        return int(self.config.parallel.num_processes)

    @property
    def expert_size(self) -> int:
        """Ranks that share one full set of experts."""
        return int(self.config.parallel.expert_parallel_size)

    @property
    def sequence_size(self) -> int:
        """Ranks that share each row."""
        return self.config.parallel.sequence_parallel_size

    @property
    def optimizer(self) -> OptimizerRecord:
        """What is known of the run's optimizer."""
        return find_optimizer(self.config.optimizer.optimizer)

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.config.train.bf16 is True else 4

    @property
    def num_tokens(self) -> int:
        """Tokens of one rank in one micro-step, at most: rows are packed."""
        row = self.config.train.per_device_train_batch_size * self.config.data.max_seq_length
        return -(-row // self.sequence_size)

    def engine_number(self, name: str) -> int:
        """A number of the DeepSpeed file, or the engine's default."""
        written = self.engine.get(name, "auto")
        return ENGINE_DEFAULTS[name] if written == "auto" else int(float(written))


def make_layout(
    config: RunConfig, shape: ModelShape, *, num_nodes: int, is_on_gpu: bool, num_ranks: int = 0
) -> Layout:
    """Read what decides the split.

    Args:
        config: resolved, so that nothing that divides the model is "auto".
        shape: of the model.
        num_nodes: machines, each with at most `config.parallel.num_processes` processes.
        num_ranks: on all of them; 0 where each has as many.
        is_on_gpu: whether processes have a GPU each; otherwise all is host memory.
    """
    content = read_deepspeed_file(config.parallel.deepspeed)
    return Layout(
        config=config,
        shape=shape,
        num_nodes=num_nodes,
        num_ranks=num_ranks or num_nodes * int(config.parallel.num_processes),
        is_on_gpu=is_on_gpu,
        stage=zero_stage(content),
        splits_experts=splits_experts(content),
        engine=content.get("zero_optimization", {}),
    )
