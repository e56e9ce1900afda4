"""The index of all settings: the section that holds each, with the flags of the command itself."""

from dataclasses import Field, fields, replace
from typing import Any

from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.declare import values_of
from hunyuan_train.config.evaluation_schema import EvaluationConfig
from hunyuan_train.config.guardian_schema import GuardianConfig
from hunyuan_train.config.launch_schema import LaunchConfig, ParallelConfig
from hunyuan_train.config.logs_schema import LoggingConfig
from hunyuan_train.config.planned_machines import HELP
from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.config.schema import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from hunyuan_train.config.values import alternatives

SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "preferences": PreferenceConfig,
    "optimizer": OptimizerConfig,
    "evaluation": EvaluationConfig,
    "checkpoints": CheckpointConfig,
    "logs": LoggingConfig,
    "guardian": GuardianConfig,
    "lora": LoraConfig,
    "parallel": ParallelConfig,
    "launch": LaunchConfig,
}
# Names are unique over the sections, so a flag needs no prefix (a test holds this).
SECTION_OF = {field.name: name for name, section in SECTIONS.items() for field in fields(section)}
# Their settings stood in `train` once, and are taken there still: files that people keep, and the
# config.yaml of runs that may be resumed, have them there.
ONCE_IN_TRAIN = ("optimizer", "evaluation", "checkpoints", "logs")
FIELDS: dict[str, Field[Any]] = {
    field.name: field for section in SECTIONS.values() for field in fields(section)
}
# Flags of the command itself, which are no settings of a run.
COMMAND_FLAGS = {
    "recipe": "tiny, lora, one_gpu, full, long, or the path of a YAML file of settings. Flags win "
    "over it. Such a file may name the recipe that it is based on: `recipe: lora`",
    "config": "the config.yaml of an earlier run, to repeat it",
    "dry_run": "run every check and print what the run would do and need, without starting it",
    "print_torchrun": "print the plain torchrun command of each host, without starting it",
    "print_slurm": "print a script for sbatch that runs the same under Slurm, without starting it",
    "show_recipe": "print the settings of --recipe, with comments, without starting anything",
    **{name: f"with --dry_run, for machines that are not at hand: {HELP[name]}" for name in HELP},
}
COMMAND_SWITCHES = ("dry_run", "print_torchrun", "print_slurm", "show_recipe")


def with_settings(config: RunConfig, **values: Any) -> RunConfig:
    """The same run with some settings replaced, each in its section."""
    for name, value in values.items():
        section = SECTION_OF[name]
        changed = replace(values_of(config)[section], **{name: value})
        config = replace(config, **{section: changed})
    return config


def read_setting(config: RunConfig, name: str) -> Any:
    """The value of a setting by its name alone."""
    return values_of(values_of(config)[SECTION_OF[name]])[name]


def is_switch(name: str) -> bool:
    """Whether a flag may stand without a value."""
    return name in COMMAND_SWITCHES or (name in FIELDS and bool in alternatives(FIELDS[name].type))
