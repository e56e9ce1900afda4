"""Reads a YAML file of settings, which may come from anybody: small, shallow, and as it is written.

PyYAML builds whatever a file asks for: aliases of aliases grow to gigabytes, deep nesting ends its
recursion, `010` is eight and `1:30` ninety. Here the events of the parser are counted before
anything is built, and a scalar stays text unless it is a plain whole number, true, false or null.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.errors import ConfigError
from hunyuan_train.json_file import read_bytes
from hunyuan_train.plain_text import make_plain_name

MAX_BYTES = 200_000  # of a file; a resolved config.yaml has 5,000
MOST_NODES = 5_000  # scalars, lists and mappings, those behind aliases counted each time
DEEPEST = 16  # a section, its settings and a list in one of them: three
PLAIN_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$")  # longer ones are nobody's
KEPT_TYPES = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _SettingsLoader(yaml.SafeLoader):
    """Leaves numbers but plain whole ones, dates and times to the setting that they are for."""


_SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT_TYPES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:int", PLAIN_INTEGER, list("-+0123456789"))


def load_yaml_file(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it cannot be read, is not YAML, gives a name twice, or is larger, deeper or
            more entangled than settings are.
    """
    text = _read_text(path)
    try:
        _check_size(yaml.parse(text), path)
        _check_keys_differ(yaml.compose(text), path)
        return yaml.load(text, _SettingsLoader)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, max_bytes=MAX_BYTES).decode("utf-8")
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML of settings: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    anchor: str | None
    num_nodes: int = 1
    depth: int = 1  # of what is in it, itself included


def _check_size(events: Iterable[yaml.Event], path: Path) -> None:
    """Refuse what would be large or deep once its aliases are followed."""
    known: dict[str, _Open] = {}  # what an anchor stands for
    unfinished = [_Open(None)]
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            _check_tag(event, path)
            unfinished.append(_Open(event.anchor))
        if isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
            finished = unfinished.pop()
        elif isinstance(event, yaml.AliasEvent):
            finished = _follow(event, known, path)
        else:
            _check_limits(unfinished, path)
            continue
        if finished.anchor:
            known[finished.anchor] = finished
        outer = unfinished[-1]
        outer.num_nodes += finished.num_nodes
        outer.depth = max(outer.depth, 1 + finished.depth)
        _check_limits(unfinished, path)


def _follow(event: yaml.AliasEvent, known: dict[str, _Open], path: Path) -> _Open:
    """What an alias stands for."""
    if event.anchor not in known:
        raise ConfigError(
            f"{path}:{event.start_mark.line + 1}: *{event.anchor} stands for nothing that ends "
            "before it; write the value itself"
        )
    return _Open(None, known[event.anchor].num_nodes, known[event.anchor].depth)


def _check_tag(event: yaml.NodeEvent, path: Path) -> None:
    tag = event.tag
    if tag not in (None, "!"):
        raise ConfigError(
            f"{path}:{event.start_mark.line + 1}: the tag {make_plain_name(tag)} is not taken; "
            "write the value alone"
        )


def _check_limits(unfinished: list[_Open], path: Path) -> None:
    if sum(one.num_nodes for one in unfinished) > MOST_NODES:
        raise ConfigError(
            f"{path} holds more than {MOST_NODES:,} values once its aliases are followed; a file "
            "of settings has a few hundred: write them out without anchors and aliases"
        )
    if max(index + one.depth for index, one in enumerate(unfinished)) > DEEPEST + 1:
        raise ConfigError(
            f"{path} is nested more than {DEEPEST} levels deep; settings stand in sections, two "
            "levels deep"
        )


def _check_keys_differ(node: yaml.Node | None, path: Path) -> None:
    """Refuse a name given twice, of which YAML would silently take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    names = [key.value for key, _ in node.value]
    for position, (key, value) in enumerate(node.value):
        if key.value in names[:position]:
            place = f"{path}:{key.start_mark.line + 1}"
            raise ConfigError(
                f"{place}: {make_plain_name(key.value)} is given twice; keep one of them"
            )
        _check_keys_differ(value, path)
