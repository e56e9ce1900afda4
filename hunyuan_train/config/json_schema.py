"""A JSON schema of the YAML file, for editors to complete and check it: made from the settings.

It admits what the loader admits of our own names, in sections or flat. Names of other tools, which
the loader takes too, are left out: an editor should offer ours.
"""

import types
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin

from hunyuan_train.config.declare import LARGEST
from hunyuan_train.config.settings import ONCE_IN_TRAIN, SECTIONS
from hunyuan_train.config.values import alternatives
from hunyuan_train.shipped import RECIPES

SCHEMA_URL = "http://json-schema.org/draft-07/schema#"  # the draft that editors know
# A number may be written as text where YAML takes it for that, as it does with 1e-5.
NUMBER_TEXT = {"type": "string", "pattern": r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"}


RECIPE = {
    "description": "the recipe of ours whose settings this file changes",
    "enum": sorted(file.stem for file in RECIPES.glob("*.yaml")),
}


def describe_file() -> dict[str, Any]:
    """The schema of a file of settings."""
    sections: dict[str, dict[str, Any]] = {
        name: {
            "description": section.__doc__ or name,
            "type": "object",
            "additionalProperties": False,
            "properties": {field.name: describe_setting(field) for field in fields(section)},
        }
        for name, section in SECTIONS.items()
    }
    for name in ONCE_IN_TRAIN:  # files that people keep have them there
        sections["train"]["properties"] |= sections[name]["properties"]
    flat = {
        field.name: describe_setting(field)
        for section in SECTIONS.values()
        for field in fields(section)
    }
    properties = flat | {
        name: merge_section(flat.get(name), section) for name, section in sections.items()
    }
    return {
        "$schema": SCHEMA_URL,
        "title": "hunyuan-train: settings of a run",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {"recipe": RECIPE} | properties,
    }


def merge_section(setting: dict[str, Any] | None, section: dict[str, Any]) -> dict[str, Any]:
    """A section, which may be empty; or the setting of the same name, as `optimizer: lean`."""
    choices = [section, {"type": "null"}]
    return {"anyOf": choices if setting is None else [*choices, setting]}


def describe_setting(field: Field[Any]) -> dict[str, Any]:
    """One setting: what it is for, its default, and what it takes."""
    limits = field.metadata
    choices = [one for kind in alternatives(field.type) for one in _describe_kind(kind, limits)]
    if limits["form"] in ("list", "paths"):
        choices.append({"type": "array", "items": {"type": ["string", "number"]}, "minItems": 1})
    described = {"description": limits["help"], "default": field.default}
    if not any(one == {"type": "null"} for one in choices):
        choices.append({"type": "null", "description": "as if it were not there"})
    return described | {"anyOf": choices}


def _describe_kind(kind: Any, limits: Any) -> list[dict[str, Any]]:
    if get_origin(kind) is Literal:
        words = list(get_args(kind))
        return [{"enum": [*words, False] if "off" in words else words}]
    if kind is types.NoneType:
        return [{"type": "null"}, {"const": "none"}]
    if kind is bool:
        return [{"type": "boolean"}]
    if kind is str:
        return [{"type": "string"}]
    number: dict[str, Any] = {"type": "integer" if kind is int else "number"}
    if limits["low"] > -LARGEST:
        number["minimum"] = limits["low"]
    if limits["high"] < LARGEST:
        number["maximum"] = limits["high"]
    return [number, NUMBER_TEXT] if kind is float else [number]
