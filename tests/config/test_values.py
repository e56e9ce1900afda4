from typing import Literal

import pytest

from hunyuan_train.config.values import describe_type, parse_value
from hunyuan_train.errors import ConfigError

Auto = Literal["auto"]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "8", 8),
        (int, "1e3", 1000),
        (float, "1e-5", 1e-5),
        (float, 1, 1.0),
        (bool, "True", True),
        (bool, "no", False),
        (bool | Auto, "auto", "auto"),
        (bool | Auto, "false", False),
        (int | Auto, "4", 4),
        (str, "1", "1"),
        (str | None, "none", None),
        (str | None, None, None),
        (str | None, "a b", "a b"),
        (Literal["fast", "slow"], "fast", "fast"),
    ],
)
def test_a_value_becomes_the_type_of_its_field(annotation, text, value):
    parsed = parse_value("setting", annotation, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "takes"),
    [
        (int, "1.5", "a whole number"),
        (int, True, "a whole number"),
        (float, "nan", "a number"),
        (float, "fast", "a number"),
        (bool, "maybe", "true or false"),
        (bool | Auto, "maybe", "true, false or auto"),
        (int | Auto, "all", "a whole number or auto"),
        (Literal["fast", "slow"], "quick", "fast or slow"),
        (str, 7, "text"),
        (str, None, "text"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_fits(annotation, text, takes):
    with pytest.raises(ConfigError, match=rf"setting is .*; it takes {takes}$"):
        parse_value("setting", annotation, text)


def test_every_type_is_described_in_words():
    assert describe_type(str | None) == "text"
    assert describe_type(int | Auto) == "a whole number or auto"
