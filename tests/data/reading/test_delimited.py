"""CSV and TSV give the rows that a JSON file of the same table gives."""

import csv
import io

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.data.reading.readers import read_chunks


def _read(path):
    chunks = list(read_chunks(path))
    records = [orjson.loads(record) for chunk in chunks for record in chunk.records]
    lines = [line for chunk in chunks for line in chunk.lines]
    return records, lines, [problem for chunk in chunks for _, problem in chunk.problems]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@given(
    rows=st.lists(st.tuples(cells, cells.filter(bool)), max_size=5), suffix=st.sampled_from("ct")
)
def test_what_is_written_is_read(tmp_path_factory, rows, suffix):
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if suffix == "t" else ",")
    writer.writerows([("prompt", "completion"), *rows])
    path = tmp_path_factory.getbasetemp() / f"a.{suffix}sv"
    path.write_bytes(text.getvalue().encode())
    expected = [
        {name: cell or None for name, cell in zip(("prompt", "completion"), row, strict=True)}
        for row in rows
    ]
    assert _read(path)[0] == expected


def test_lines_are_those_that_rows_start_on(tmp_path):
    path = tmp_path / "A.CSV"
    path.write_bytes('\ufeffprompt,completion\r\n"a\nb",c\r\n\r\nd,"e, ""f"""\r\n'.encode())
    records, lines, problems = _read(path)
    assert records == [
        {"prompt": "a\nb", "completion": "c"},
        {"prompt": "d", "completion": 'e, "f"'},
    ]
    assert lines == [2, 5]
    assert [problem.kind for problem in problems] == ["bom"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt;completion\nq;a\n", "separate columns by ',' and not by ';'"),
        (b"prompt,prompt\nq,a\n", "names the column 'prompt' twice"),
        (b"prompt,completion\nq\n", "the row on line 2 has 1 cells and the first row 2 names"),
        (b"prompt,completion\nq,a,b\n", "has 3 cells"),
        (b'prompt,completion\nq,"a\n', "is not CSV: unexpected end of data"),
        (b"prompt,completion\nq,\xc4\xe3\xba\xc3\n", "looks like GB18030"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    [problem] = [one for one in _read(path)[2] if one.kind == "broken_file"]
    assert message in problem.reason


def test_a_cell_without_a_character_is_a_null(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,input,output\nQ,,\n")
    assert _read(path)[0] == [{"instruction": "Q", "input": None, "output": None}]
