"""Rows of parquet and Arrow files as JSON text, so that they take the same way as lines.

A row is what the same table has as a line of JSON. What JSON has no type for is text where there is
one way to write it (a decimal, a date, bytes that are UTF-8); a column of anything else is refused.
"""

import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO
from uuid import UUID

import orjson
import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import ipc, parquet, types

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.contents import Content
from hunyuan_train.data.reading.delimited import ROWS_PER_CHUNK, BrokenRowsError

BUFFER_BYTES = 1 << 20

_CAST = "leave the column out of the table, or write it as text"


def read_rows(raw: BinaryIO, content: Content) -> Iterator[tuple[list[bytes], list[Problem]]]:
    """The rows of a table, some hundred at a time; with the first, what is said of its columns.

    Raises:
        BrokenRowsError: it is damaged, or a column holds what is neither JSON nor text.
    """
    columns: dict[str, Callable[[Any], Any]] | None = None
    try:
        for batch in _read_batches(raw, content):
            problems: list[Problem] = []
            if columns is None:
                columns = _choose_writers(batch.schema, problems)
            for start in range(0, batch.num_rows, ROWS_PER_CHUNK):
                rows = batch.slice(start, ROWS_PER_CHUNK).to_pylist(maps_as_pydicts="strict")
                yield [_write_row(row, columns) for row in rows], problems
                problems = []
    except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
        raise BrokenRowsError(str(error)) from error


def _read_batches(raw: BinaryIO, content: Content) -> Iterator[Any]:
    if content == "parquet":
        # A file may be one row group, of which each column would be read whole without a buffer.
        file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BUFFER_BYTES)
        yield from file.iter_batches(batch_size=ROWS_PER_CHUNK)
        return
    if content == "arrow file":  # also what pandas calls feather
        file = ipc.open_file(raw)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        yield from ipc.open_stream(raw)  # what datasets.save_to_disk writes


def _choose_writers(schema: Any, problems: list[Problem]) -> dict[str, Callable[[Any], Any]]:  # noqa: ANN401
    """What becomes of the values of each column that holds more than JSON has types for."""
    repeated = {name for name in schema.names if schema.names.count(name) > 1}
    if repeated:
        raise BrokenRowsError(f"two columns are named {min(repeated)!r}; rename one of them")
    writers = {}
    for field in schema:
        kinds = {_name_kind(leaf) for leaf in _find_leaves(field.type)} - {""}
        if "refused" in kinds:
            raise BrokenRowsError(
                f"the column {field.name!r} is of type {field.type}, which is neither text nor "
                f"JSON; {_CAST}"
            )
        if kinds:
            writers[field.name] = _make_writer(field.name)
        if kinds - {"number"}:
            reason = f"a column of type {field.type}, which JSON does not have"
            problems.append(Problem("column_type", field.name, reason, "read as its text"))
    return writers


def _find_leaves(kind: Any) -> Iterator[Any]:  # noqa: ANN401  # types of Arrow
    """The types at the ends of a nested one."""
    if types.is_dictionary(kind):
        yield from _find_leaves(kind.value_type)
    elif types.is_map(kind):
        yield from _find_leaves(kind.key_type)
        yield from _find_leaves(kind.item_type)
    elif types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _find_leaves(kind.field(number).type)
    elif types.is_nested(kind) and not types.is_union(kind):  # lists of every make
        yield from _find_leaves(kind.value_type)
    else:
        yield kind


def _name_kind(kind: Any) -> str:  # noqa: ANN401  # a type of Arrow
    """How a type is written: "" as it is, "number" for some, "text", or "refused"."""
    if types.is_floating(kind):
        return "number"
    is_json = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean)
    if any(test(kind) for test in (*is_json, types.is_integer, types.is_null)):
        return ""
    is_bytes = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    is_written = (types.is_decimal, types.is_date, types.is_time, types.is_timestamp)
    is_known = any(test(kind) for test in (*is_bytes, types.is_binary_view, *is_written))
    if isinstance(kind, pa.BaseExtensionType):
        is_known = kind.extension_name in ("arrow.json", "arrow.uuid")
    return "text" if is_known else "refused"


def _make_writer(column: str) -> Callable[[Any], Any]:
    def write(value: Any) -> Any:  # noqa: ANN401  # any value of Arrow
        if isinstance(value, dict):
            return {key: write(item) for key, item in value.items()}
        if isinstance(value, list):
            return [write(item) for item in value]
        try:
            return _write_value(value)
        except ValueError as error:
            raise BrokenRowsError(f"the column {column!r} holds {error}; {_CAST}") from error

    return write


def _write_value(value: object) -> object:
    """A value that may have no type in JSON.

    Raises:
        ValueError: it is neither JSON nor text.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError("bytes that are not UTF-8 text") from error
    if isinstance(value, Decimal):
        return format(value, "f")  # never 1E+3
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, int | str | None):
        return value
    number = float(value)  # type: ignore[arg-type]  # a float of any width
    if math.isinf(number):
        raise ValueError("infinity, which is no number of JSON")
    return None if math.isnan(number) else number  # how pandas writes a number that is missing


def _write_row(row: dict[str, Any], writers: dict[str, Callable[[Any], Any]]) -> bytes:
    for column, write in writers.items():
        row[column] = write(row[column])
    return orjson.dumps(row)
