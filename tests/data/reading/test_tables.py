"""A table gives what the same rows give as lines, or names the column that cannot be read."""

import datetime
import decimal
import io
import json
import uuid

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from hunyuan_train.data.reading.delimited import BrokenRowsError
from hunyuan_train.data.reading.tables import read_rows


def _rows(table, content="parquet"):
    """Rows of a table that was written and read, and what was said of its columns."""
    file = io.BytesIO()
    if content == "parquet":
        parquet.write_table(table, file)
    else:
        with (ipc.new_file if content == "arrow file" else ipc.new_stream)(file, table.schema) as w:
            w.write_table(table)
    file.seek(0)
    read = list(read_rows(file, content))
    rows = [json.loads(row) for rows, _ in read for row in rows]
    return rows, [problem.field for _, problems in read for problem in problems]


@pytest.mark.parametrize("content", ["parquet", "arrow file", "arrow"])
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["请".encode()], pa.binary(), "请"),
        ([b"abcd"], pa.binary(4), "abcd"),
        ([b"a"], pa.large_binary(), "a"),
        ([decimal.Decimal("12.50")], pa.decimal128(4, 2), "12.50"),
        ([decimal.Decimal("1E+3")], pa.decimal256(40, 0), "1000"),
        ([datetime.date(2025, 1, 2)], pa.date32(), "2025-01-02"),
        ([datetime.time(9, 15)], pa.time64("us"), "09:15:00"),
        ([datetime.datetime(2025, 1, 2, 3)], pa.timestamp("us"), "2025-01-02T03:00:00"),
        ([[{"b": b"x"}]], pa.list_(pa.struct({"b": pa.binary()})), [{"b": "x"}]),
    ],
)
def test_what_json_has_no_type_for_is_text_and_said(content, values, kind, expected):
    rows, said = _rows(pa.table({"answer": pa.array(values, kind)}), content)
    assert rows == [{"answer": expected}]
    assert said == ["answer"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a"], pa.dictionary(pa.int8(), pa.string()), "a"),
        (["a"], pa.large_string(), "a"),
        (["a"], pa.string_view(), "a"),
        ([True], pa.bool_(), True),
        ([2**63], pa.uint64(), 2**63),
        ([1.5], pa.float32(), 1.5),
        ([1.5], pa.float16(), 1.5),
        ([float("nan")], pa.float64(), None),
        ([None], pa.null(), None),
        ([[("k", 1)]], pa.map_(pa.string(), pa.int64()), {"k": 1}),
        ([{"a": None, "b": [None]}], pa.struct({"a": pa.int8(), "b": pa.list_(pa.int8())}), None),
    ],
)
def test_what_json_has_a_type_for_is_that(values, kind, expected):
    content = "arrow" if kind in (pa.string_view(), pa.float16()) else "parquet"
    rows, said = _rows(pa.table({"answer": pa.array(values, kind)}), content)
    assert rows == [{"answer": values[0] if expected is None and kind.num_fields else expected}]
    assert said == []


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([b"\xff\xd8"], pa.binary(), "column 'image' holds bytes that are not UTF-8"),
        ([{"bytes": b"\xff", "path": "p"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}),
         "column 'image' holds bytes"),
        ([datetime.timedelta(1)], pa.duration("s"), "column 'image' is of type duration"),
        ([float("inf")], pa.float64(), "column 'image' holds infinity"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_column(values, kind, message):
    table = pa.table({"prompt": ["q"], "image": pa.array(values, kind)})
    with pytest.raises(BrokenRowsError, match=message):
        _rows(table)


def test_two_columns_of_one_name_are_refused():
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    with pytest.raises(BrokenRowsError, match="two columns are named 'x'"):
        _rows(table, "arrow")


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values=st.lists(_json, min_size=1, max_size=4))
def test_a_table_of_json_is_read_as_the_table_itself_says(values):
    try:
        table = pa.table({"value": pa.array(values)})
        file = io.BytesIO()
        parquet.write_table(table, file)
    except (pa.ArrowException, TypeError):
        return  # rows of which no table can be made
    rows, _ = _rows(table)
    assert rows == json.loads(json.dumps(table.to_pylist()))


def test_an_identifier_is_text():
    if not hasattr(pa, "uuid"):
        pytest.skip("this pyarrow has no such type")
    value = uuid.uuid4()
    array = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value.bytes], pa.binary(16)))
    rows, _ = _rows(pa.table({"id": array}), "arrow")
    assert rows == [{"id": str(value)}]
