"""Rows of parquet and Arrow files as JSON text, so that they take the same way as lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

ROWS_PER_CHUNK = 256
BUFFER_BYTES = 1 << 20


class BrokenTableError(ValueError):
    """A table that cannot be read."""


def read_rows(path: Path, raw: BinaryIO) -> Iterator[list[bytes]]:
    """The rows of a table, some hundred at a time."""
    # Only tables need pyarrow, and importing it takes longer than all the rest together.
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        for batch in _read_batches(path, raw):
            for start in range(0, batch.num_rows, ROWS_PER_CHUNK):
                rows = batch.slice(start, ROWS_PER_CHUNK).to_pylist()
                yield [orjson.dumps(_drop_nulls(row), default=_name_type) for row in rows]
    except (pa.ArrowException, TypeError) as error:
        raise BrokenTableError(str(error)) from error


def _read_batches(path: Path, raw: BinaryIO) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415

        # A file may be one row group, of which each column would be read whole without a buffer.
        file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BUFFER_BYTES)
        yield from file.iter_batches(batch_size=ROWS_PER_CHUNK)
        return
    from pyarrow import ipc  # noqa: PLC0415

    yield from ipc.open_stream(raw)  # what datasets.save_to_disk writes


def _drop_nulls(value: Any) -> Any:  # noqa: ANN401  # any JSON
    """Without the nulls: a table gives every struct all the fields that any row has."""
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in value]
    return value


def _name_type(value: object) -> str:
    """A column of a type that JSON has not: training reads none of these."""
    return f"<{type(value).__name__}>"
