"""Reads a command line: `--flag value`, `--flag=value`, for switches `--flag` or `--no_flag`.

One word may stand alone: a YAML file of settings or a recipe of ours, as with `--recipe`.
"""

from collections.abc import Iterator, Sequence
from os.path import isfile

from hunyuan_train.config.nearest import suggest
from hunyuan_train.config.settings import COMMAND_FLAGS, SECTION_OF, is_switch
from hunyuan_train.config.values import quote
from hunyuan_train.config.vendor import (
    FOREIGN_NAMES,
    Refusal,
    describe_refusals,
    translate_flag,
    translate_value,
)
from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.shipped import RECIPES

YAML_ENDINGS = (".yaml", ".yml")


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Collect the settings of a command line, still as text.

    Raises:
        ConfigError: all unknown and refused flags at once; or a flag given twice with different
            values, of which the last would otherwise win without a word.
    """
    values: dict[str, str] = {}
    refusals: list[Refusal] = []
    for name, value in _split(arguments):
        setting = _translate(name, value)
        if isinstance(setting, Refusal):
            refusals.append(setting)
        elif setting is not None and values.setdefault(*setting) != setting[1]:
            raise ConfigError(
                f"{setting[0]} is given twice, as {make_plain_name(values[setting[0]])} and as "
                f"{make_plain_name(setting[1])}; "
                "keep one of them"
            )
    if refusals:
        raise ConfigError(describe_refusals(refusals))
    return values


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Pair each flag with its value, or with None where it stands alone."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if _names_recipe(word):
            yield "recipe", word
            continue
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected {quote(flag)}; settings are given as --name value")
        name = flag[2:].replace("-", "_")
        if equals:
            yield name, value
        elif words and not words[0].startswith("--") and not _stands_alone(name, words[0]):
            yield name, words.pop(0)
        else:
            yield name, None


def _names_recipe(word: str) -> bool:
    """Whether a word that stands alone names a YAML file, or settings that we bring."""
    if word.startswith("-"):
        return False
    return word.endswith(YAML_ENDINGS) or (word.isidentifier() and isfile(RECIPES / f"{word}.yaml"))


def _stands_alone(name: str, word: str) -> bool:
    """Whether a word behind a switch is no value of it: `--show_recipe lora`."""
    return is_switch(name) and _names_recipe(word)


def _translate(name: str, value: str | None) -> tuple[str, str] | Refusal | None:
    """Our setting and its value; or None for a flag without effect; or why it is not taken."""
    if name in FOREIGN_NAMES:
        return translate_flag(name, "true" if value is None else value)
    if name.startswith("no_") and is_switch(name[3:]) and value is None:
        return name[3:], "false"
    if name not in SECTION_OF and name not in COMMAND_FLAGS:
        known = (*SECTION_OF, *COMMAND_FLAGS)
        return Refusal(
            f"--{make_plain_name(name)}", f"unknown flag; {suggest(name, known, prefix='--')}"
        )
    if value is not None:
        return translate_value(name, value)
    return (name, "true") if is_switch(name) else Refusal(f"--{name}", "it needs a value")
