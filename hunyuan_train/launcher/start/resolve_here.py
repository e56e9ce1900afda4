"""Resolves a run on the hosts that it starts on, and finds what is wrong before it does."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hunyuan_train.checkpoint.folder import find_checkpoint
from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.export.companions import list_companions
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.model.base_folder import locate_base, resolve_base
from hunyuan_train.model.released_files import check_generation_config
from hunyuan_train.planner.gentlest import resolve_gentlest
from hunyuan_train.planner.machine import Hardware


def resolve_here(
    config: RunConfig, *, machine: Machine, slots: Sequence[int] = (), has_weights: bool = True
) -> ResolvedRun:
    """Resolve settings, check every rule, and look whether the files are there that it reads.

    Args:
        config: as it was asked for.
        machine: what each host offers.
        slots: processes on each host; default: this one, with as many as the settings say.
        has_weights: whether those of the model lie here already, or are still to be downloaded.

    Raises:
        ConfigError: the first rule that it breaks, or a model that cannot be read.
        CheckpointError: it resumes from what is no checkpoint, or its export would copy a file from
            outside the model's folder.
    """
    name = config.model.model_name_or_path
    shape = resolve_base(name, carry_mtp=config.model.carry_mtp)
    here = partial(resolve, shape=shape, machine=machine, slots=slots)
    run = resolve_gentlest(config, here, Hardware())
    if name not in PRESETS:
        if has_weights:
            locate_base(Path(name), run.shape)
        for folder in export_sources(config):
            list_companions(folder)
            check_generation_config(folder, run.shape)
    if config.checkpoints.resume_from_checkpoint:
        find_checkpoint(config.checkpoints.resume_from_checkpoint, Path(config.train.output_dir))
    return run


def export_sources(config: RunConfig) -> list[Path]:
    """The folders that the export at the end of a run copies files from; none without one."""
    if not config.checkpoints.export:
        return []
    return [Path(config.model.model_name_or_path), tokenizer_folder(config.model)]
