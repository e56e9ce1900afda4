"""One line of JSON to one Python value, with what is wrong named instead of passed over.

orjson reads nearly every line. What it cannot tell (a key given twice, integers past 64 bits) or
refuses (halves of surrogate pairs) is read again by the standard library, which is slower.
"""

import json
import math
import re
from typing import Any

import orjson

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.encodings import guess_encoding
from hunyuan_train.families.grammar.tokenizer import replace_surrogates

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_RECODE = "convert the file to UTF-8, for instance with iconv"
_MAX_INTEGER = 2.0**63  # orjson makes floats of integers beyond


class _InvalidJsonError(ValueError):
    """Something that Python's reader accepts and JSON does not."""

    def __init__(self, kind: str, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.problem = Problem(kind, "", reason, fix)


def decode_record(raw: bytes, problems: list[Problem]) -> Any | None:  # noqa: ANN401  # any JSON
    """The value of one JSON text, or None with the reason added to `problems`."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _decode_slowly(raw, problems)
    is_sure = raw.count(b'"') == _count_quotes(value) and b"u0022" not in raw
    return value if is_sure else _decode_slowly(raw, problems)


def _count_quotes(value: object) -> int:
    """Quotes in the JSON text of a value, around each key and string and escaped inside.

    More of them in the text mean a key that was given twice. The count is -1 where a number is so
    large that it may have been an integer of more digits.
    """
    num_quotes = 0
    open_values = [value]
    while open_values:
        inner = open_values.pop()
        if type(inner) is str:
            num_quotes += 2 + inner.count('"')
        elif type(inner) is dict:
            open_values += inner.values()
            for key in inner:
                num_quotes += 2 + key.count('"')
        elif type(inner) is list:
            open_values += inner
        elif type(inner) is float and abs(inner) >= _MAX_INTEGER:
            return -1
    return num_quotes


def parse_json(text: str) -> Any | None:  # noqa: ANN401
    """The value of a JSON string inside a record; None where it is not JSON."""
    try:
        return _load(text)
    except (ValueError, RecursionError):
        return None


def _load(text: str) -> Any:  # noqa: ANN401
    return json.loads(
        text, object_pairs_hook=_unique_keys, parse_constant=_refuse_number, parse_float=_read_float
    )


def _decode_slowly(raw: bytes, problems: list[Problem]) -> Any | None:  # noqa: ANN401
    text = ""
    try:
        text = raw.decode()
        value = _load(text)
    except UnicodeDecodeError as error:
        problems.append(describe_encoding(raw, error))
    except _InvalidJsonError as error:
        problems.append(error.problem)
    except json.JSONDecodeError as error:
        problems.append(_describe_json_error(text, error))
    except (ValueError, RecursionError) as error:
        reason = f"JSON that cannot be held: {error}"
        problems.append(Problem("json", "", reason, "simplify this record"))
    else:
        return _fix_surrogates(raw, value, problems)
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _InvalidJsonError(
            "duplicate_key", f"the key {repeated!r} is given twice", "keep one of the two"
        )
    return value


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        _refuse_number(text)
    return number


def _refuse_number(text: str) -> None:
    raise _InvalidJsonError("json", f"{text} is not a number JSON can hold", "write another")


def describe_encoding(raw: bytes, error: UnicodeDecodeError) -> Problem:
    """What bytes that are not UTF-8 look like."""
    return Problem(
        "encoding",
        "",
        f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; "
        f"the text looks like {guess_encoding(raw)}",
        _RECODE,
    )


def _describe_json_error(text: str, error: json.JSONDecodeError) -> Problem:
    if "\0" in text:
        guess = guess_encoding(text.encode())
        reason = f"zero bytes between the letters; the text looks like {guess}"
        return Problem("encoding", "", reason, _RECODE)
    is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
    what = "the JSON ends too early" if is_cut else f"not JSON: {error.msg}"
    fix = "one JSON object a line"
    if is_cut:
        fix = "the line is cut short, or the record goes on: `jq -c .` writes one a line"
    return Problem("json", "", f"{what}, column {error.colno}", fix)


def _fix_surrogates(raw: bytes, value: Any, problems: list[Problem]) -> Any:  # noqa: ANN401
    if not _SURROGATE.search(raw):
        return value
    fixed = _replace_in_strings(value)
    if fixed != value:
        problems.append(
            Problem(
                "surrogate",
                "",
                "half of a surrogate pair in the text",
                "replaced by U+FFFD",
                is_repaired=True,
            )
        )
    return fixed


def _replace_in_strings(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_replace_in_strings(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): _replace_in_strings(item) for key, item in value.items()}
    return value
