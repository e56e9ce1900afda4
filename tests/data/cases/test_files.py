"""Files that users brought: each is read, or refused by a sentence that names what it is."""

from pathlib import Path

import orjson
import pytest

from hunyuan_train.data.reading.readers import read_chunks

CASES = Path(__file__).resolve().parents[2] / "cases"
SNOW = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in (("What colour is snow?", "White."), ("And coal?", "Black."))
]
PAIRS = [
    {"prompt": "What colour is snow?", "completion": "White."},
    {"prompt": "And coal?", "completion": "Black."},
]


def _read(name):
    """Records of a case, and its problems by kind with their whole text."""
    chunks = list(read_chunks(CASES / name))
    records = [orjson.loads(record) for chunk in chunks for record in chunk.records]
    problems = [problem for chunk in chunks for _, problem in chunk.problems]
    return records, {one.kind: f"{one.field}: {one.reason}; {one.fix}" for one in problems}


@pytest.mark.parametrize(
    ("name", "records", "problems"),
    [
        ("c01_binary.parquet", PAIRS, {"column_type": "completion: a column of type binary"}),
        ("c04_dict_large.parquet", [{"prompt": "q1", "completion": "a1"}], {}),
        (
            "c05_decimal_answer.parquet",
            [{"prompt": "q1", "completion": "12.50"}],
            {"column_type": "completion: a column of type decimal128(4, 2)"},
        ),
        (
            "c06_date_answer.parquet",
            [{"prompt": "q1", "completion": "2025-01-02"}],
            {"column_type": "completion: a column of type date32[day]"},
        ),
        ("c07_file.arrow", None, {}),
        ("c08.feather", None, {}),
        ("c09.csv", [{"prompt": "q1", "completion": "a1"}], {}),
        ("c31_plain_named_gz.jsonl.gz", SNOW, {"misnamed": "the content is text"}),
        ("c13_utf16.jsonl", [], {"broken_file": "it is UTF-16; convert it with iconv"}),
        ("c24_array_gbk.json", [], {"broken_file": "looks like GB18030 (Chinese); convert"}),
        ("c30_misnamed.jsonl", None, {"misnamed": "the content is gzip"}),
        ("c32_html.jsonl", [], {"broken_file": "a web page or XML; download the file itself"}),
        ("c33_lfs_pointer.jsonl", [], {"broken_file": "a Git LFS pointer and not the file itself"}),
    ],
)
def test_a_file_is_read_or_told_what_it_is(name, records, problems):
    found, said = _read(name)
    if records is None:
        assert found
    else:
        assert found == records
    assert said.keys() == problems.keys()
    for kind, words in problems.items():
        assert words in said[kind]


def test_one_table_is_one_table():
    assert _read("c38_nested_nulls.parquet") == _read("c39_nested_nulls.jsonl")
