"""Whether the arguments of a call fit the JSON schema of its tool, by the library `jsonschema`.

Schemas of published data are of several vocabularies: `dict` and `float` of Python stand for
JSON's names. A schema that cannot be used checks nothing. Nothing is fetched: a reference that
leads out of the schema is one that cannot be followed.
"""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, UnknownType
from referencing import Registry
from referencing.exceptions import Unresolvable

from hunyuan_train.families.grammar.dialogue import dump_json

Json = Any

# Python's names of types, as BFCL and others write them, in JSON's.
_TYPES = {
    **{"str": "string", "int": "integer", "float": "number", "double": "number", "long": "integer"},
    **{"bool": "boolean", "list": "array", "tuple": "array", "dict": "object", "map": "object"},
}
_KNOWN_TYPES = frozenset(("string", "integer", "number", "boolean", "array", "object", "null"))
_ANY = "any"  # Python's name of what every value is
_SUBSCHEMAS = ("items", "additionalProperties", "not")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")
_OPEN = ("$ref", "additionalProperties", "patternProperties", *_LISTED)  # more may be allowed
_MAX_DEPTH = 40
_MAX_SHOWN = 120  # characters of what a value is blamed for


class Misfit(NamedTuple):
    """A value that is not as its schema says."""

    place: str  # `c`, `where.city` or `days[2]`
    reason: str


def find_misfits(arguments: dict[str, Json], schema: dict[str, Json]) -> list[Misfit]:
    """What in a call's arguments its schema does not allow, argument by argument.

    Which arguments are missing, and which are not listed, is left to others; inside of an argument
    both are found.

    Args:
        arguments: of the call, those without a value left out.
        schema: of the tool's arguments.
    """
    validator = _find_validator(dump_json(schema))
    if validator is None:
        return []
    try:
        errors = list(validator.iter_errors(arguments))
    except (Unresolvable, UnknownType, re.error, RecursionError, ValueError):
        return []
    return [
        Misfit(_write_place(error.absolute_path), _shorten(error.message))
        for error in errors
        if error.absolute_path
    ]


def find_schema_fault(schema: dict[str, Json]) -> str:
    """Why a schema cannot be used to check arguments; "" where it can."""
    return _find_fault(dump_json(schema))


@functools.lru_cache(maxsize=4096)  # a data set has few tools, in many records
def _find_fault(text: str) -> str:
    try:
        Draft202012Validator.check_schema(_adapt(json.loads(text), is_root=True))
    except SchemaError as error:
        return _shorten(f"{_write_place(error.absolute_path)}: {error.message}".removeprefix(": "))
    except (re.error, RecursionError) as error:
        return _shorten(str(error))
    return ""


def find_unknown_type(schema: dict[str, Json]) -> str:
    """The first type in a schema that no vocabulary has, and its place; "" where all are known."""
    return _find_unknown_type(dump_json(schema))


@functools.lru_cache(maxsize=4096)
def _find_unknown_type(text: str) -> str:
    for place, one in _walk(json.loads(text), "", 0):
        if "type" in one and any(name not in (*_KNOWN_TYPES, _ANY) for name in _name_types(one)):
            where = place.removeprefix(".")
            return _shorten(f"{where}: the type {one['type']!r} is not known".removeprefix(": "))
    return ""


def _walk(schema: Json, place: str, depth: int) -> Iterator[tuple[str, dict[str, Json]]]:
    """A schema and those inside of it, each with its place."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return
    yield place, schema
    for key, value in schema.items():
        inner: list[tuple[str, Json]] = [(key, value)] if key in _SUBSCHEMAS else []
        if key in _LISTED and isinstance(value, list):
            inner = [(f"{key}[{index}]", one) for index, one in enumerate(value)]
        if key in _NAMED and isinstance(value, dict):
            inner = [(f"{key}.{name}", one) for name, one in value.items()]
        for name, one in inner:
            yield from _walk(one, f"{place}.{name}", depth + 1)


@functools.lru_cache(maxsize=4096)
def _find_validator(text: str) -> Draft202012Validator | None:
    """What checks by a schema, given as JSON; None where it is none."""
    if _find_fault(text):
        return None
    return Draft202012Validator(_adapt(json.loads(text), is_root=True), registry=Registry())


def _adapt(schema: Json, *, is_root: bool = False, depth: int = 0) -> Json:
    """A schema in JSON's own words, whose inner objects take only what they list."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return schema
    adapted = {key: _adapt_inner(key, value, depth + 1) for key, value in schema.items()}
    _adapt_type(adapted)
    if not isinstance(adapted.get("required", []), list):  # a name, or draft 3's flag
        del adapted["required"]
    if adapted.get("enum") == []:
        del adapted["enum"]
    if not is_root and adapted.get("properties") and not any(key in adapted for key in _OPEN):
        adapted["additionalProperties"] = False
    return adapted


def _adapt_inner(key: str, value: Json, depth: int) -> Json:
    """What a schema has under a key, where that holds schemas."""
    if key in _SUBSCHEMAS:
        return _adapt(value, depth=depth)
    if key in _LISTED and isinstance(value, list):
        return [_adapt(one, depth=depth) for one in value]
    if key in _NAMED and isinstance(value, dict):
        return {name: _adapt(one, depth=depth) for name, one in value.items()}
    return value


def _adapt_type(schema: dict[str, Json]) -> None:
    """Name types as JSON does; a name that nobody knows says nothing."""
    if "type" not in schema:
        return
    names = _name_types(schema)
    if all(name in _KNOWN_TYPES for name in names) and names:
        schema["type"] = names
    else:
        del schema["type"]


def _name_types(schema: dict[str, Json]) -> list[str]:
    """The types that a schema names, in JSON's words where they have one."""
    named = schema["type"]
    return [
        _TYPES.get(str(name).lower(), str(name).lower())
        for name in (named if isinstance(named, list) else [named])
    ]


def _write_place(path: Iterator[Json]) -> str:
    parts = [f"[{one}]" if isinstance(one, int) else f".{one}" for one in path]
    return "".join(parts).removeprefix(".")


def _shorten(text: str) -> str:
    half = _MAX_SHOWN // 2
    return text if len(text) <= _MAX_SHOWN else f"{text[:half]} … {text[-half:]}"
