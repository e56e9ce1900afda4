"""Bytes on disk: a checkpoint, what a run keeps at one time, and the export."""

from dataclasses import dataclass
from math import ceil

from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.parameters import Parameter, list_parameters


@dataclass(frozen=True, slots=True)
class Disk:
    """What a run writes."""

    checkpoint: int
    num_kept: int  # checkpoints at one time, the one being written included
    export: int

    @property
    def total(self) -> int:
        """Bytes that must be free before the run starts."""
        return self.num_kept * self.checkpoint + self.export


def plan_disk(run: ResolvedRun, *, num_checkpoints: int | None = None) -> Disk:
    """Sizes of all files, over all ranks.

    Args:
        run: what is trained.
        num_checkpoints: at one time, where the length of the run is known.
    """
    saves = run.config.checkpoints
    parameters = list_parameters(run)
    trained = [one for one in parameters if one.is_trained]
    num_kept = num_checkpoints or usual_checkpoints(saves)
    written = trained if run.config.lora.use_lora else parameters
    export = 2 * sum(whole_elements(one, run) for one in written) if saves.export else 0
    return Disk(sum(checkpoint_bytes(one, run) for one in trained), num_kept, export)


def usual_checkpoints(saves: CheckpointConfig) -> int:
    """Checkpoints at one time, of a run whose length is not known: without a limit, one."""
    is_limited = saves.save_steps and saves.save_total_limit
    # The oldest goes once the newest is whole.
    num_kept = saves.save_total_limit + 1 if is_limited else 1
    return num_kept + saves.save_best


def count_checkpoints(saves: CheckpointConfig, num_steps: int, interval: int) -> int:
    """Checkpoints at one time, of a run of so many steps that saves every `interval`, 0: never."""
    num_saves = ceil(num_steps / interval) if interval else 1
    num_kept = num_saves + saves.save_best
    return min(num_kept, usual_checkpoints(saves)) if saves.save_total_limit else num_kept


def whole_elements(parameter: Parameter, run: ResolvedRun) -> int:
    """Elements of a parameter over all ranks; experts that are split count whole."""
    is_split = parameter.kind is Kind.EXPERT and run.splits_experts
    return parameter.total * (run.expert_size if is_split else 1)


def checkpoint_bytes(parameter: Parameter, run: ResolvedRun) -> int:
    """Master weights and states of one trained parameter, over all ranks (checkpoint/state.py)."""
    elements = whole_elements(parameter, run)
    kept = run.optimizer.kept(elements, is_exact=parameter.is_exact)
    # What is its own master is written as it is, in bfloat16.
    master = kept.master or run.element_bytes * elements
    return master if run.config.checkpoints.save_only_model else master + kept.states
