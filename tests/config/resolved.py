"""Runs resolved from flags, for tests of what follows from them."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import Needs
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY
from hunyuan_train.families.shape import ModelShape

EIGHT_GPUS = Machine(num_gpus=8, num_cores=64)
TWO_CORES = Machine(num_gpus=0, num_cores=2)
ALL_BUT_DISK = frozenset(Needs) - {Needs.DISK}


def resolve_flags(
    flags: str | Sequence[str],
    machine: Machine = TWO_CORES,
    *,
    shape: ModelShape = TINY,
    slots: Sequence[int] = (),
    known: Collection[Needs] = ALL_BUT_DISK,
) -> ResolvedRun:
    """The run of a command line, if no rule refuses it."""
    config = load_config(flags.split() if isinstance(flags, str) else list(flags))
    return resolve(config, shape=shape, machine=machine, slots=slots, known=known)


def unchecked(num_ranks: int, *, heads: tuple[int, int] = (32, 8), **settings) -> ResolvedRun:
    """A run of the released model that nobody has checked, on one host with as many GPUs."""
    return ResolvedRun(
        config=with_settings(RunConfig(), num_processes=num_ranks, **settings),
        shape=replace(A13B, num_attention_heads=heads[0], num_key_value_heads=heads[1]),
        engine={},
        machine=Machine(num_gpus=num_ranks, num_cores=num_ranks),
        slots=(num_ranks,),
    )
