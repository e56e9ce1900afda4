"""Fields of a config.json, each read as the type and within the bounds that a model can have.

Whoever wrote the file may have written anything. A number that a computation cannot use is refused
by the name of its field, before it decides how much memory or time something takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name


@dataclass(frozen=True, slots=True)
class Fields:
    """A config.json and the name that errors give it."""

    values: Mapping[str, Any]
    source: str

    def refuse(self, name: str, rule: str) -> ConfigError:
        """The error for a field that breaks a rule."""
        value = self.values.get(name)
        shown = repr(value) if isinstance(value, str) else value
        return ConfigError(
            f"{self.source} has {name} = {make_plain_name(shown, most=80)}; it must be {rule}: "
            "take the file published with the model"
        )

    def is_given(self, name: str) -> bool:
        """Whether the field is there, and not null."""
        return self.values.get(name) is not None

    def refuse_difference(self, alias: str, name: str) -> None:
        """Refuse two names of one number that say different things: readers take either.

        Raises:
            ConfigError: both are given, and differ.
        """
        given = [self.values[one] for one in (alias, name) if self.is_given(one)]
        if len({repr(_once(value)) for value in given}) > 1:
            raise self.refuse(alias, f"the same as {name}, or left out")

    def whole(self, name: str, *, most: int, least: int = 1) -> int:
        """A whole number; neither true nor 1.0 is one.

        Raises:
            ConfigError: anything else, or out of bounds.
            KeyError: the field is missing.
        """
        value = self.values[name]
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(name, f"a whole number from {least:,} to {most:,}")
        return value

    def number(self, name: str, *, default: float, least: float = 0.0) -> float:
        """A finite number above `least`; the default where the field is missing.

        Raises:
            ConfigError: anything else, null included.
        """
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not isfinite(value) or not value > least:
            raise self.refuse(name, f"a number above {least:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where the field is missing.

        Raises:
            ConfigError: anything else.
        """
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def token_id(self, name: str, *, vocab_size: int) -> int | None:
        """A token of the vocabulary, or None.

        Raises:
            ConfigError: anything else.
        """
        if not self.is_given(name):
            return None
        value = self.values[name]
        if type(value) is not int or not 0 <= value < vocab_size:
            raise self.refuse(name, f"null or a token's number, from 0 to {vocab_size - 1:,}")
        return value

    def uniform(self, name: str, *, most: int) -> int:
        """A whole number from 1, which published files repeat once a layer.

        Raises:
            ConfigError: anything else, or layers that differ.
            KeyError: the field is missing.
        """
        value = self.values[name]
        if not isinstance(value, list):
            return self.whole(name, most=most)
        num_layers = self.values["num_hidden_layers"]
        if len(value) < num_layers or any(one != value[0] for one in value):
            raise self.refuse(
                name, "the same for all layers, as Transformers' class has one value for all"
            )
        return Fields({name: value[0]}, self.source).whole(name, most=most)


def _once(value: object) -> object:
    """A value that may be repeated once a layer."""
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        return value[0]
    return value
