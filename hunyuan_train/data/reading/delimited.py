"""Rows of CSV and TSV files as JSON text, so that they take the same way as lines.

The first row names the columns. A cell is text as it is written; one without a character is a null,
as in any other table.
"""

import csv
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

ROWS_PER_CHUNK = 256
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = ";\t|,"


class BrokenRowsError(ValueError):
    """What is not the rows of one table."""


def find_delimiter(path: Path) -> str | None:
    """What separates cells, by the name of the file; None where it holds no such rows."""
    endings = [suffix.lower() for suffix in path.suffixes[-2:]]
    return next((DELIMITERS[ending] for ending in endings if ending in DELIMITERS), None)


def read_delimited(
    blocks: Iterable[bytes], delimiter: str, *, max_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """Each row below the names, with the line that it starts on.

    Args:
        blocks: the bytes of the file.
        delimiter: between two cells.
        max_bytes: of a row.

    Raises:
        BrokenRowsError: there are no names, or a row has more or fewer cells than names.
        UnicodeDecodeError: it is not UTF-8.
    """
    csv.field_size_limit(max_bytes)  # of the process; its default refuses a long answer
    rows = csv.reader(_split_lines(blocks, max_bytes), delimiter=delimiter, strict=True)
    line = 1
    names: list[str] = []
    try:
        for cells in rows:
            if not names:
                names = _check_names(cells, delimiter)
            elif cells:
                yield line, orjson.dumps(_join(names, cells, line))
            line = rows.line_num + 1
    except csv.Error as error:
        raise BrokenRowsError(f"the row on line {line} is not CSV: {error}") from error


def _split_lines(blocks: Iterable[bytes], max_bytes: int) -> Iterator[str]:
    """Lines with their ends: a cell between quotes may hold some."""
    decode = getincrementaldecoder("utf-8")().decode
    rest = ""
    for block in blocks:
        *lines, rest = (rest + decode(block)).split("\n")
        yield from (f"{line}\n" for line in lines)
        if len(rest) > max_bytes:
            raise BrokenRowsError(f"a line of more than {max_bytes >> 20} MB; split the record")
    rest += decode(b"", True)
    if rest:
        yield rest


def _check_names(cells: list[str], delimiter: str) -> list[str]:
    if len(cells) == 1 and (others := set(_OTHER_DELIMITERS) - {delimiter} & set(cells[0])):
        raise BrokenRowsError(
            f"its first row names one column, {cells[0]!r}; separate columns by {delimiter!r} and "
            f"not by {sorted(others)[0]!r}"
        )
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated or not cells:
        raise BrokenRowsError(
            f"its first row names the column {repeated[0]!r} twice; rename one of them"
            if repeated
            else "its first row is empty; it must name the columns"
        )
    return cells


def _join(names: list[str], cells: list[str], line: int) -> dict[str, str | None]:
    if len(cells) != len(names):
        raise BrokenRowsError(
            f"the row on line {line} has {len(cells)} cells and the first row {len(names)} names; "
            "put cells that hold the separator between quotes"
        )
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}
