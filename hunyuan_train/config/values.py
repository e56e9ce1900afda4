"""Turns the text of a flag, or a scalar of a YAML file, into the type that a field declares."""

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
BOOLEAN_WORDS = (*TRUE_WORDS, *FALSE_WORDS)
MOST_CHARACTERS = 50_000  # of a text: the addresses of a few thousand hosts
MOST_QUOTED = 80  # characters of a value in an error


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types a field admits: the members of a union, else the type alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def describe_type(annotation: Any) -> str:
    """What a setting takes, in words: `true, false or auto`."""
    names = {bool: "true, false", int: "a whole number", float: "a number", str: "text"}
    words: list[str] = []
    admitted = alternatives(annotation)
    for option in admitted:
        if option is int and float in admitted:
            continue
        if get_origin(option) is Literal:
            words += get_args(option)
        elif option is not types.NoneType:
            words += names[option].split(", ")
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def parse_value(name: str, annotation: Any, value: Any) -> Any:
    """Convert one value to its field's type.

    Args:
        name: the setting, for the error.
        annotation: the field's declared type.
        value: text of a flag, or what YAML made of a scalar (which reads 1e-5 as text).

    Raises:
        ConfigError: the value is not of that type.
    """
    # Text accepts every word, so it comes last.
    for option in sorted(alternatives(annotation), key=lambda option: option is str):
        try:
            parsed = _convert(option, value)
        except (ValueError, OverflowError):
            continue
        if isinstance(parsed, str):
            check_text(name, parsed)
        return parsed
    raise ConfigError(f"{name} is {quote(value)}; it takes {describe_type(annotation)}")


def check_text(name: str, text: str) -> None:
    """Refuse a text that no name, path or list of them has.

    Raises:
        ConfigError: it holds control characters or broken bytes, or has no end.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"{name} is {quote(text)}, a text of {len(text):,} characters; give at most "
            f"{MOST_CHARACTERS:,}"
        )
    # It would begin another line of a script or log, or be obeyed by a terminal.
    if make_plain_name(text, most=len(text)) != text:
        raise ConfigError(
            f"{name} is {quote(text)}, which holds a line break, another control character or "
            "bytes that are not UTF-8; write it in one line of plain text"
        )


def quote(value: object) -> str:
    """A value as an error shows it: in one line, with escapes written out, and cut when long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…"


def _convert(option: Any, value: Any) -> Any:
    """Convert to one type of a union, or raise ValueError so that the next one is tried."""
    if get_origin(option) is Literal:
        return _one_of(get_args(option), value)
    if option is types.NoneType:
        return _none(value)
    if option is bool:
        return _boolean(value)
    if option is str:
        return _text(value)
    return _number(option, value)


def _one_of(words: tuple[str, ...], value: Any) -> str:
    word = "off" if value is False else value  # what YAML makes of a bare `off`
    if word not in words:
        raise ValueError
    return str(word)


def _none(value: Any) -> None:
    if value is not None and value != "none":
        raise ValueError


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word not in BOOLEAN_WORDS:
        raise ValueError
    return word in TRUE_WORDS


def _number(number_type: type[int] | type[float], value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    if number_type is int and isinstance(value, int):
        return value
    number = float(value)
    if not math.isfinite(number) or (number_type is int and not number.is_integer()):
        raise ValueError
    # A whole number keeps all its digits, of which a float has 16.
    is_written_whole = isinstance(value, str) and value.strip().lstrip("+-").isdecimal()
    return int(value) if number_type is int and is_written_whole else number_type(number)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value
