"""From a YAML file and flags to one `RunConfig`, and back to a file.

Flags win over the file, the file over the defaults of `schema.py`. Nobody changes a config after
it is loaded; `resolve.py` makes the one copy in which "auto" has become a value.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.config.flags import read_flags
from hunyuan_train.config.held_out import merge_held_out
from hunyuan_train.config.schema import ModelConfig, RunConfig
from hunyuan_train.config.settings import (
    COMMAND_FLAGS,
    COMMAND_SWITCHES,
    FIELDS,
    ONCE_IN_TRAIN,
    SECTION_OF,
    SECTIONS,
    suggest,
)
from hunyuan_train.config.values import parse_value
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.shipped import RECIPES, TINY_TOKENIZER, TOP_LEVEL

# A relative path in these may also name a shipped file, wherever the command is run.
SHIPPED_INPUTS = ("train_data_file", "eval_data_file", "tokenizer_name_or_path", "deepspeed")


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandLine:
    """What `hunyuan-train train` was asked: the run, and what to do instead of starting it."""

    config: RunConfig
    is_dry_run: bool = False
    prints_torchrun: bool = False
    prints_slurm: bool = False


def load_config(arguments: Sequence[str]) -> RunConfig:
    """The run that a command line describes."""
    return load_command_line(arguments).config


def load_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the arguments of `hunyuan-train train`.

    Raises:
        ConfigError: an unknown, repeated or refused flag, or a value its setting does not take.
    """
    flags = read_flags(arguments)
    command = {name: flags.pop(name) for name in COMMAND_FLAGS if name in flags}
    if "recipe" in command and "config" in command:
        raise ConfigError("--recipe and --config both name a file of settings; give one of them")
    source = command.get("recipe") or command.get("config")
    settings = read_yaml(find_recipe(source)) if source else {}
    asked = {name: parse_value(name, bool, command.get(name, False)) for name in COMMAND_SWITCHES}
    if sum(asked.values()) > 1:
        given = " and ".join(f"--{name}" for name in COMMAND_SWITCHES if asked[name])
        raise ConfigError(f"{given} are given together; give one of them")
    return CommandLine(
        config=build_config(merge_held_out(settings, flags)),
        is_dry_run=asked["dry_run"],
        prints_torchrun=asked["print_torchrun"],
        prints_slurm=asked["print_slurm"],
    )


def dump_config(config: RunConfig, path: Path) -> None:
    """Write a config as YAML, so that `--config` reads the same one back; whole or not at all."""
    unfinished = path.with_name(f"{path.name}.incomplete")
    try:
        unfinished.write_text(dump_text(config), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def dump_text(config: RunConfig) -> str:
    """A config as YAML."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))


def build_config(values: dict[str, Any]) -> RunConfig:
    """Give each value its type and its section."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, raw in values.items():
        value = parse_value(name, FIELDS[name].type, raw)
        sections[SECTION_OF[name]][name] = value
        if name in SHIPPED_INPUTS and value is not None:
            sections[SECTION_OF[name]][name] = locate_input(value)
    built: dict[str, Any] = {name: section(**sections[name]) for name, section in SECTIONS.items()}
    return RunConfig(**built)


def locate_input(paths: str) -> str:
    """Find comma-separated files, each with an optional :weight, here or among those we ship."""
    if Path(paths).exists():  # its name may hold a comma or a colon
        return paths
    located = []
    for path_and_weight in paths.split(","):
        path = path_and_weight.partition(":")[0]
        is_shipped = path and not Path(path).exists() and (TOP_LEVEL / path).exists()
        located.append(str(TOP_LEVEL / path_and_weight) if is_shipped else path_and_weight)
    return ",".join(located)


def tokenizer_folder(config: ModelConfig) -> Path:
    """The tokenizer given, else the model folder's own; presets fall back on the bundled one."""
    if config.tokenizer_name_or_path:
        return Path(config.tokenizer_name_or_path)
    if config.model_name_or_path in PRESETS:
        return TINY_TOKENIZER
    return Path(config.model_name_or_path)


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: one of ours by its name, or any YAML file by its path."""
    bundled = RECIPES / f"{name_or_path}.yaml"
    path = bundled if bundled.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ConfigError(
            f"{name_or_path} is neither a recipe of ours ({known}) nor the path of a YAML file"
        )
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Flatten the sections of a YAML file, refusing names that are not where they belong."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        _check_keys_differ(yaml.compose(text), path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no sections; it needs some of {', '.join(SECTIONS)}")
    values: dict[str, Any] = {}
    for section, settings in content.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section {section}; {suggest(section, SECTIONS)}")
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: section {section} must hold `name: value` lines")
        for name in settings:
            _check_key(path, section, name)
            if name in values:
                raise ConfigError(
                    f"{path}: {name} is given twice, in train and in {SECTION_OF[name]}; keep one"
                )
        values.update(settings)
    return values


def _check_keys_differ(node: yaml.Node | None, path: Path) -> None:
    """Refuse a name given twice, of which YAML would silently take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    names = [key.value for key, _ in node.value]
    for position, (key, value) in enumerate(node.value):
        if key.value in names[:position]:
            raise ConfigError(
                f"{path}:{key.start_mark.line + 1}: {key.value} is given twice; keep one of them"
            )
        _check_keys_differ(value, path)


def _check_key(path: Path, section: str, name: str) -> None:
    if name not in SECTION_OF:
        raise ConfigError(f"{path}: unknown key {section}.{name}; {suggest(name, SECTION_OF)}")
    home = SECTION_OF[name]
    if home != section and not (section == "train" and home in ONCE_IN_TRAIN):
        raise ConfigError(f"{path}: {name} belongs in section {home}, not {section}")
