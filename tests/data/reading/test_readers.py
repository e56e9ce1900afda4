import bz2
import gzip
import io
import json
import lzma
import os

import orjson
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from hunyuan_train.data.reading import compression, readers, tables
from hunyuan_train.data.reading.readers import read_chunks
from tests.data.dialogues import chat

RECORDS = [chat(f"question {number}", f"answer 请 {number}") for number in range(300)]
LINES = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in RECORDS).encode()


def _read(path):
    """Records, their lines and the problems of a file."""
    records, lines, problems = [], [], []
    for chunk in read_chunks(path):
        records += [orjson.loads(record) for record in chunk.records]
        lines += chunk.lines
        problems += [(line, problem.kind) for line, problem in chunk.problems]
    return records, lines, problems


@pytest.fixture(params=[1 << 20, 700])
def block_bytes(request, monkeypatch):
    """Files of many blocks, and of one."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(compression, "_ZST_INPUT_BYTES", min(request.param, 90))
    monkeypatch.setattr(compression, "_INPUT_BYTES", min(request.param, 90))


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("no_last_newline.jsonl", LINES[:-1]),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("two_frames.jsonl.zst", zstandard.compress(LINES[:999]) + zstandard.compress(LINES[999:])),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("two_streams.jsonl.bz2", bz2.compress(LINES[:999]) + bz2.compress(LINES[999:])),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("padded.jsonl.xz", lzma.compress(LINES[:999]) + bytes(8) + lzma.compress(LINES[999:])),
        ("A.JSONL.GZ", gzip.compress(LINES)),
        ("array.json", json.dumps(RECORDS).encode()),
        ("array_with_lines.json", json.dumps(RECORDS, indent=1, ensure_ascii=False).encode()),
        ("array.json.gz", gzip.compress(json.dumps(RECORDS).encode())),
    ],
)
def test_every_kind_of_text_file_gives_the_same_records(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    records, lines, problems = _read(path)
    assert records == RECORDS
    assert problems == []
    if not name.startswith("array"):
        assert lines == list(range(1, 301))


def test_lines_of_array_elements_are_those_they_start_on(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS, indent=1))
    text = path.read_text().splitlines()
    assert all(text[line - 1] == " {" for line in _read(path)[1])


def test_lines_that_are_dialogues_are_not_taken_for_one_array(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(record['messages'])}\n" for record in RECORDS))
    assert _read(path)[0] == [record["messages"] for record in RECORDS]


def test_parquet_and_saved_datasets_give_the_same_records(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(RECORDS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    assert _read(tmp_path / "a.parquet")[0] == RECORDS
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    records, rows, _ = _read(arrow)
    assert records == RECORDS
    assert rows == list(range(1, 301))


def test_a_table_gives_what_the_same_table_gives_as_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    mixed = [chat("a", "b", mode="fast"), chat("c", "d")]
    mixed[1]["messages"][1]["train"] = True
    table = datasets.Dataset.from_list(mixed)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl")
    assert _read(tmp_path / "a.parquet") == _read(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_skipped_and_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINES)
    assert _read(path)[0] == RECORDS
    assert _read(path)[2] == [(1, "bom")]


def test_blank_lines_are_skipped_and_do_not_shift_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n  \n" + LINES + b"\t\n")
    records, lines, problems = _read(path)
    assert records == RECORDS
    assert lines == list(range(3, 303))
    assert problems == [(1, "blank_line"), (303, "blank_line")]
    reasons = [problem.reason for chunk in read_chunks(path) for _, problem in chunk.problems]
    assert reasons == ["2 lines with nothing on them", "a line with nothing on it"]


@pytest.mark.parametrize("separator", ["\N{LINE SEPARATOR}", "\x85", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_record(tmp_path, separator):
    record = chat(f"a{separator}b", "c")
    path = tmp_path / "a.jsonl"
    text = json.dumps(record, ensure_ascii=False)
    path.write_text(f"{text}\n{text}\n", encoding="utf-8")
    assert _read(path)[0] == [record, record]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"[\n]\n", b"\xef\xbb\xbf"])
def test_a_file_without_records_is_said(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert "empty_file" in {kind for _, kind in _read(path)[2]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-200]),
        ("c.jsonl.bz2", bz2.compress(LINES)[:-20]),
        ("c.jsonl.xz", lzma.compress(LINES)[:-20]),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-50]),
        ("a.json", json.dumps(RECORDS).encode()[:-30]),
        ("b.json", json.dumps(RECORDS).replace('"role"', "role", 1).encode()),
        ("c.json", json.dumps(RECORDS).encode() + b"{}"),
        ("d.json", b"[1 2]"),
        ("e.json", b'["\xff"]'),
        ("f.json", b"[" * 100_000),
        ("a.parquet", b"PAR1 and no more"),
        ("a.arrow", b"nothing\0"),
        ("a.jsonl", LINES.decode().encode("utf-16")),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_an_error_and_no_crash(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    records, _, problems = _read(path)
    assert "broken_file" in {kind for _, kind in problems}
    assert records == RECORDS[: len(records)] or name == "d.json"


def test_a_line_beyond_the_limit_is_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 5000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"' + b"x" * 20_000 + b'"\n' + LINES)
    records, lines, problems = _read(path)
    assert problems == [(1, "size")]
    assert records == RECORDS
    assert lines[0] == 2


def test_the_bytes_of_all_chunks_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    assert sum(chunk.num_bytes for chunk in read_chunks(path)) == path.stat().st_size


class _WatchedFile(io.BytesIO):
    """Remembers the largest read."""

    largest = 0

    def read(self, size=-1):
        content = super().read(size)
        self.largest = max(self.largest, len(content))
        return content


def test_a_table_of_one_large_row_group_is_read_in_pieces():
    texts = [os.urandom(1000).hex() for _ in range(8000)]
    file = _WatchedFile()
    table = pa.table({"prompt": texts, "completion": texts})
    parquet.write_table(table, file, row_group_size=len(texts), use_dictionary=False)
    num_bytes = file.tell()
    file.seek(0)
    rows = [row for rows, _ in tables.read_rows(file, "parquet") for row in rows]
    assert [json.loads(row)["prompt"] for row in rows] == texts
    assert file.largest <= 2 * tables.BUFFER_BYTES < num_bytes / 8


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "feather"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "a Git LFS pointer and not the file itself"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"/annex/objects/MD5E-s12--0123.jsonl\n", "a git-annex pointer"),
        (b"../../.git/annex/objects/Xk/0p/SHA256E-s1--00.parquet/x", "a git-annex pointer"),
        (b"outs:\n- md5: 0123\n  size: 4\n  path: a.jsonl\n", "a DVC pointer"),
        (b"md5: 01\nfrozen: true\nouts:\n  - path: a.jsonl\n", "a DVC pointer"),
        (b"Entry not found", "the refusal of a server"),
        (b"404: Not Found", "the refusal of a server"),
        (b"Invalid username or password.\n", "the refusal of a server"),
        (b"PK\x03\x04\x14\x00", "a zip archive"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x80\x04\x95\x00", "a pickle"),
        (b"(lp0\nVa\np1\na.", "a pickle"),
        ('{"a": "b"}'.encode("utf-32"), "UTF-32"),
        ('{"a": "b"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_what_lies_in_place_of_a_file_is_named_whatever_its_ending(
    tmp_path, ending, content, message
):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    problems = [problem for chunk in read_chunks(path) for _, problem in chunk.problems]
    [broken] = [problem for problem in problems if problem.kind == "broken_file"]
    assert f"it is {message}" in broken.reason


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet", "a.feather"])
def test_lines_with_the_name_of_a_table_are_read_as_lines(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(LINES)
    assert _read(path) == (RECORDS, list(range(1, 301)), [(1, "misnamed")])


def test_a_record_that_begins_like_a_refusal_is_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("not found,answer\nq,a\n")
    assert _read(path)[0] == [{"not found": "q", "answer": "a"}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("objects", [RECORDS[:1], RECORDS[:2], [{"data": RECORDS[:3]}]])
def test_an_object_over_several_lines_is_one_error(tmp_path, name, objects):
    text = "\n".join(json.dumps(one, indent=2) for one in objects).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    (chunk,) = read_chunks(tmp_path / name)
    ((line, problem),) = chunk.problems
    assert (chunk.records, line, problem.kind) == ([], 1, "broken_file")
    assert "goes on over several lines" in problem.reason
    assert "`jq -c .`" in problem.fix


def test_a_broken_first_line_does_not_hide_the_records_below(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + LINES)
    chunks = list(read_chunks(tmp_path / "a.jsonl"))
    assert [one for chunk in chunks for one in chunk.records] == [b"{", *LINES.splitlines()]
