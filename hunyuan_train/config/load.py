"""From a YAML file and flags to one `RunConfig`, and back to a file.

Flags win over the file, the file over the defaults of `schema.py`. Nobody changes a config after
it is loaded; `resolve.py` makes the one copy in which "auto" has become a value.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os.path import exists, expanduser, isdir, isfile  # which take a name of any length
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.config.flags import read_flags
from hunyuan_train.config.nearest import find_nearest_word, suggest
from hunyuan_train.config.other_tools import ADAPTERS_LEFT_OUT
from hunyuan_train.config.planned_machines import HELP, PlannedMachines, parse_machines
from hunyuan_train.config.precedence import merge_settings
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.config.schema import ModelConfig, RunConfig
from hunyuan_train.config.settings import (
    COMMAND_FLAGS,
    COMMAND_SWITCHES,
    FIELDS,
    ONCE_IN_TRAIN,
    SECTION_OF,
    SECTIONS,
)
from hunyuan_train.config.values import parse_value, quote
from hunyuan_train.config.vendor import (
    FOREIGN_NAMES,
    RENAMED,
    Refusal,
    describe_refusals,
    refuse_value,
    translate_flag,
    translate_value,
)
from hunyuan_train.config.yaml_file import load_yaml_file
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.shipped import RECIPES, TINY_TOKENIZER, TOP_LEVEL
from hunyuan_train.whole_file import open_whole

# A relative path in these may also name a shipped file, wherever the command is run.
SHIPPED_INPUTS = ("train_data_file", "eval_data_file", "tokenizer_name_or_path", "deepspeed")
# What names a job. A command line with none of these is that of somebody who tries us out.
CHOOSES_JOB = frozenset({"recipe", "config", "model_name_or_path", "train_data_file"})
DEMO = ("--recipe", "tiny")
BASE = "recipe"  # of a file: the recipe of ours whose settings it changes
MOST_BYTES_OF_A_NAME = 255  # on every file system of Linux
MOST_BYTES_OF_A_PATH = 4095
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/|$)")  # what a shell would have replaced


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandLine:
    """What `hunyuan-train train` was asked: the run, and what to do instead of starting it."""

    config: RunConfig
    given: frozenset[str] = frozenset()  # what flags or a file of the user's say, by name
    is_dry_run: bool = False
    prints_torchrun: bool = False
    prints_slurm: bool = False
    recipe: str | None = None  # its text, to be shown
    machines: PlannedMachines | None = None  # to plan for, in a dry run, instead of this one
    file: Path | None = None  # of settings, which flags change

    @property
    def is_demo(self) -> bool:
        """Whether nothing says what to train: neither a model nor dialogues nor a recipe."""
        return not self.given & CHOOSES_JOB


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
    file = find_recipe(source) if source else None
    settings = read_yaml(file) if file else {}
    own_settings = settings if file and file.parent != RECIPES else {}
    settings = put_over_base(settings, source)
    asked = {name: parse_value(name, bool, command.get(name, False)) for name in COMMAND_SWITCHES}
    if sum(asked.values()) > 1:
        given = " and ".join(f"--{name}" for name in COMMAND_SWITCHES if asked[name])
        raise ConfigError(f"{given} are given together; give one of them")
    if asked["show_recipe"] and not file:
        raise ConfigError(f"--show_recipe needs --recipe: {_list_recipes()}, or a YAML file")
    described = {name: command[name] for name in HELP if name in command}
    if described and not asked["dry_run"]:
        verb = "describes" if len(described) == 1 else "describe"
        raise ConfigError(
            f"--{' and --'.join(described)} {verb} machines to plan for, with --dry_run or "
            "`hunyuan-train plan`; a run takes the hosts of --node_ip_list (NODE_IP_LIST) or "
            "--hostfile (HOSTFILE), and their GPUs or --num_processes of them"
        )
    return CommandLine(
        config=build_config(merge_settings(settings, flags)),
        given=frozenset({*command, *flags, *own_settings}),
        is_dry_run=asked["dry_run"],
        prints_torchrun=asked["print_torchrun"],
        prints_slurm=asked["print_slurm"],
        recipe=file.read_text(encoding="utf-8") if file and asked["show_recipe"] else None,
        machines=parse_machines(described) if described else None,
        file=file,
    )


def dump_config(config: RunConfig, path: Path, *, left_out: Sequence[str] = ()) -> None:
    """Write a config as YAML, so that `--config` reads the same one back; whole or not at all."""
    with open_whole(path, is_ours=True) as file:
        file.write(dump_text(config, left_out=left_out).encode())


def dump_text(config: RunConfig, *, left_out: Sequence[str] = ()) -> str:
    """A config as YAML, without some settings, which then have their defaults."""
    sections = asdict(config)
    for name in left_out:
        del sections[SECTION_OF[name]][name]
    return str(yaml.safe_dump(sections, sort_keys=False))


def build_config(values: dict[str, Any]) -> RunConfig:
    """Give each value its type and its section."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    defaults = {name: FIELDS[name].default for name in SHIPPED_INPUTS if FIELDS[name].default}
    for name, raw in {**defaults, **values}.items():
        sections[SECTION_OF[name]][name] = read_value(name, raw)
    built: dict[str, Any] = {name: section(**sections[name]) for name, section in SECTIONS.items()}
    return RunConfig(**built)


def read_value(name: str, raw: Any) -> Any:
    """One setting as its field declares it: of its type, a list in one text, ~ replaced.

    Raises:
        ConfigError: it is something else.
    """
    form = FIELDS[name].metadata["form"]
    if form in ("list", "paths") and isinstance(raw, list | int) and not isinstance(raw, bool):
        raw = join_list(name, raw if isinstance(raw, list) else [raw])
    value = parse_value(name, FIELDS[name].type, raw)
    if isinstance(value, str) and form in ("path", "paths"):
        value = expand_home(name, value, is_list=form == "paths")
        return locate_input(value) if name in SHIPPED_INPUTS else value
    return value


def join_list(name: str, items: list[Any]) -> str:
    """A list of YAML as its setting is written on a command line.

    Raises:
        ConfigError: it is empty, or holds what no comma-separated text can.
    """
    plain = [item for item in items if isinstance(item, str | int | float)]
    words = [item if isinstance(item, str) else quote(item) for item in plain]
    if not words or len(words) < len(items) or any("," in word for word in words):
        raise ConfigError(
            f"{name} is {quote(items)}; it takes words without commas, as a list or comma-separated"
        )
    return ",".join(words)


def expand_home(name: str, paths: str, *, is_list: bool) -> str:
    """Paths with ~ and ~user replaced, which a shell leaves alone behind = and in YAML.

    Raises:
        ConfigError: one is longer than any file system takes, or begins with a variable.
    """
    expanded = [expanduser(path) for path in (paths.split(",") if is_list else [paths])]
    for path in expanded:
        if _VARIABLE.match(path):
            raise ConfigError(
                f"{name} is {quote(path)}; variables are not replaced in settings (a shell does it "
                "in flags, outside of single quotes): write the whole path, or begin it with ~/"
            )
        if not _has_short_names(path):
            raise ConfigError(f"{name} is {describe_long_path(path)}")
    return ",".join(expanded)


def describe_long_path(path: str) -> str:
    """The path and the rule that it breaks, where a file system has called it too long."""
    rule = f"in which one name has more than {MOST_BYTES_OF_A_NAME} bytes; no file has such a name"
    if _has_short_names(path):
        rule = f"which has more than {MOST_BYTES_OF_A_PATH} bytes; no file has such a path"
    return f"{quote(path)}, {rule}"


def _has_short_names(path: str) -> bool:
    return all(len(os.fsencode(part)) <= MOST_BYTES_OF_A_NAME for part in path.split("/"))


def locate_input(paths: str) -> str:
    """Find comma-separated files, each with an optional :weight, here or among those we ship."""
    if exists(paths):  # its name may hold a comma or a colon
        return paths
    located = []
    for path_and_weight in paths.split(","):
        path = path_and_weight.partition(":")[0]
        # A path that climbs out of a folder means the user's own, and none of ours.
        is_shipped = path and ".." not in Path(path).parts and not exists(path)
        is_shipped = is_shipped and exists(TOP_LEVEL / path)
        located.append(str(TOP_LEVEL / path_and_weight) if is_shipped else path_and_weight)
    return ",".join(located)


def tokenizer_folder(config: ModelConfig) -> Path:
    """The tokenizer given, else the model folder's own; presets fall back on the bundled one."""
    if config.tokenizer_name_or_path:
        return Path(config.tokenizer_name_or_path)
    if config.model_name_or_path in PRESETS:
        return TINY_TOKENIZER
    return Path(config.model_name_or_path)


def put_over_base(settings: dict[str, Any], source: str | None) -> dict[str, Any]:
    """The settings of a file over those of the recipe that it names, if it does.

    Raises:
        ConfigError: `recipe` names none of ours.
    """
    if BASE not in settings:
        return settings
    base, own = settings[BASE], {name: settings[name] for name in settings if name != BASE}
    file = RECIPES / f"{base}.yaml"
    if not (isinstance(base, str) and isfile(file) and file.parent == RECIPES):
        raise ConfigError(
            f"{source}: recipe is {quote(base)}; it names the recipe of ours that this file "
            f"changes: {_list_recipes()}"
        )
    return merge_settings(read_yaml(file), own)


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: one of ours by its name, or any YAML file by its path."""
    bundled = RECIPES / f"{name_or_path}.yaml"
    path = bundled if isfile(bundled) else Path(name_or_path)
    if isdir(path):
        found = [one for one in (path / CONFIG, *sorted(path.glob("*.yaml"))) if isfile(one)]
        remedy = f"give the file of settings in it: {found[0]}" if found else "give a YAML file"
        raise ConfigError(f"{name_or_path} is a folder and no file of settings; {remedy}")
    if not isfile(path):
        raise ConfigError(
            f"{name_or_path} is neither a recipe of ours ({_list_recipes()}) nor the path of a "
            "YAML file"
        )
    return path


def _list_recipes() -> str:
    return ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))


def read_yaml(path: Path) -> dict[str, Any]:
    """Flatten the sections of a YAML file, refusing names that are not where they belong.

    A file of another tool has no sections. Its names are taken as those flags are.
    """
    content = load_yaml_file(path) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no sections; it needs some of {', '.join(SECTIONS)}")
    values: dict[str, Any] = {}
    given_in: dict[str, str] = {}
    refusals: list[Refusal] = []
    renamed: list[str] = []
    for name, content_of_name in content.items():
        if name == BASE:
            values |= {} if content_of_name is None else {BASE: content_of_name}
            continue
        if name in SECTIONS and isinstance(content_of_name, dict):
            taken: Any = _read_section(path, name, content_of_name)
        else:
            taken = _read_top_level(path, name, content_of_name)
        if isinstance(taken, Refusal):
            refusals.append(taken)
            continue
        refused = [refuse_value(setting, value) for setting, value in taken.items()]
        refusals += [_as_in_a_file(one) for one in refused if one]
        for setting in taken:
            if setting in values:
                raise ConfigError(
                    f"{path}: {setting} is given twice, in {given_in[setting]} and in {name}; "
                    "keep one"
                )
            given_in[setting] = name
        values.update(taken)
        renamed += [f"{name} as {setting}" for setting in taken if name not in (setting, *SECTIONS)]
    if refusals:
        also = f"\n  taken: {', '.join(renamed)}" if renamed else ""
        raise ConfigError(describe_refusals(refusals, of=f"these keys of {path}") + also)
    return _adapters_left_out(content, values) | values


def _adapters_left_out(content: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The rank and alpha that another tool gives to adapters where its file names neither."""
    tools = [defaults for key, defaults in ADAPTERS_LEFT_OUT.items() if content.get(key)]
    is_lora = str(values.get("use_lora", False)).lower() == "true"
    return dict(tools[0]) if tools and is_lora and BASE not in values else {}


def _read_section(path: Path, section: str, settings: dict[Any, Any]) -> dict[str, Any]:
    """The settings of one section."""
    for name in settings:
        _check_key(path, section, name)
    return settings


def _read_top_level(path: Path, name: Any, value: Any) -> dict[str, Any] | Refusal:
    """A setting outside of all sections, in our words or those of another tool.

    A key without a value says nothing: tools write all that they know, and leave most empty.
    """
    if value is None and (name in SECTIONS or name in FOREIGN_NAMES or name in SECTION_OF):
        return {}
    if name in SECTION_OF and not isinstance(value, dict):
        is_word = isinstance(value, str)
        return dict([translate_value(name, value)]) if is_word else {name: value}
    if name in FOREIGN_NAMES:
        return _translate_key(name, value)
    if name in SECTIONS:
        setting = find_nearest_word(name, set(SECTION_OF))
        remedy = f"; for a {name} write {setting}" if setting and setting != name else ""
        return Refusal(name, f"a section, which must hold `name: value` lines{remedy}")
    if isinstance(value, dict):
        return Refusal(make_plain_name(name), f"unknown section; {suggest(name, SECTIONS)}")
    return Refusal(make_plain_name(name), f"unknown key; {suggest(name, SECTION_OF)}")


def _translate_key(name: str, value: Any) -> dict[str, Any] | Refusal:
    """A key of another tool's file; its value keeps its type where the name alone differs."""
    if name in RENAMED:
        return {RENAMED[name]: value}
    text = str(value).lower() if isinstance(value, bool) else str(value)
    translated = translate_flag(name, text)
    if isinstance(translated, Refusal):
        return _as_in_a_file(translated)
    return dict([translated]) if translated else {}


def _as_in_a_file(refusal: Refusal) -> Refusal:
    """The same, with settings written as in a file."""
    return Refusal(*(re.sub(r"--(?=\w)", "", text) for text in (refusal.flag, refusal.remedy)))


def _check_key(path: Path, section: str, name: Any) -> None:
    if name not in SECTION_OF:
        raise ConfigError(
            f"{path}: unknown key {section}.{make_plain_name(name)}; {suggest(name, SECTION_OF)}"
        )
    home = SECTION_OF[name]
    if home != section and not (section == "train" and home in ONCE_IN_TRAIN):
        raise ConfigError(f"{path}: {name} belongs in section {home}, not {section}")
