"""Everything that can be known to be wrong before a process starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from hunyuan_train.checkpoint.folder import find_checkpoint
from hunyuan_train.config.freezing import check_freezing
from hunyuan_train.config.inputs import check_output_folder
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.config.rules import check_config, check_needles_fit
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.sequences import check_sequence_size
from hunyuan_train.families.registry import PRESETS, resolve_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.released_files import locate_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked run: what was asked, with every "auto" of the machine decided."""

    config: RunConfig
    shape: ModelShape
    machine: Machine
    slots: tuple[int, ...]  # processes on each host, that of rank 0 first

    @property
    def num_ranks(self) -> int:
        """Processes of the whole run."""
        return sum(self.slots)


def make_plan(
    config: RunConfig, *, machine: Machine, slots: Sequence[int] = (), num_ranks: int = 0
) -> Plan:
    """Resolve a config on a machine and check it.

    Args:
        config: num_processes may be "auto".
        machine: what each host offers.
        slots: processes on each of several hosts; expert groups stay inside a host, so their size
            divides all of these.
        num_ranks: processes on all hosts, where a rank knows no more than that.

    Raises:
        ConfigError: the first rule that it breaks.
        CheckpointError: it resumes from what is no checkpoint.
    """
    name = config.model.model_name_or_path
    shape = resolve_shape(name)
    if slots:
        config = with_processes(config, gcd(*slots))
    config = resolve_config(config, machine=machine, shape=shape)
    check_config(config, machine=machine, shape=shape)
    check_freezing(shape, config.model)
    needles = config.evaluation.needle_lengths
    check_needles_fit(needles, context_length=shape.context_length, model=name)
    check_output_folder(config.train, config.checkpoints)
    if name not in PRESETS:
        locate_weights(Path(name), shape)
    if config.checkpoints.resume_from_checkpoint:
        find_checkpoint(config.checkpoints.resume_from_checkpoint, Path(config.train.output_dir))
    slots = tuple(slots) or (int(config.parallel.num_processes),)
    check_sequence_size(
        config,
        num_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_ranks=num_ranks or sum(slots),
    )
    config = with_processes(config, slots[0])
    return Plan(config=config, shape=shape, machine=machine, slots=slots)


def with_processes(config: RunConfig, num_processes: int) -> RunConfig:
    """The config for a host with so many processes."""
    return replace(config, parallel=replace(config.parallel, num_processes=num_processes))
