import bz2
import gzip
import os

import pytest

from hunyuan_train.data.reading.sources import find_sources, list_sources
from hunyuan_train.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.parquet", "c.json.gz", "README.md", "odd,name:2.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "d.jsonl.zst").write_text("{}")
    return tmp_path


def _named(names):
    return [(str(source.path), source.weight) for source in find_sources(names)]


def test_files_with_weights(folder):
    assert _named("a.jsonl:2,b.parquet:0.5, c.json.gz") == [
        ("a.jsonl", 2.0),
        ("b.parquet", 0.5),
        ("c.json.gz", 1.0),
    ]


def test_a_folder_gives_its_data_files_in_order_and_passes_its_weight_on(folder):
    names = [name for name, _ in _named(".:3")]
    assert names == ["a.jsonl", "b.parquet", "c.json.gz", "inner/d.jsonl.zst", "odd,name:2.jsonl"]
    assert {weight for _, weight in _named(".:3")} == {3.0}


def test_a_name_that_exists_is_taken_as_it_is(folder):
    assert _named("odd,name:2.jsonl") == [("odd,name:2.jsonl", 1.0)]


def test_a_saved_dataset_is_read_by_its_own_list_of_files(folder):
    saved = folder / "saved"
    saved.mkdir()
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    (saved / "data-0.arrow").write_text("")
    (saved / "cache-123.arrow").write_text("")
    assert _named("saved") == [("saved/data-0.arrow", 1.0)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("missing.jsonl", "does not exist"),
        ("README.md", "no ending that is read as data"),
        ("inner/nothing", "does not exist"),
        (" , ", "is empty"),
        ("a.jsonl:0", "must be above 0"),
        ("a.jsonl:1.2.3", "not a number"),
        ("a.jsonl:two", "not a number"),
        ("a.jsonl:-1", "must be above 0 and up to 1000"),
        ("a.jsonl:nan", "must be above 0 and up to 1000"),
        ("a.jsonl:1e9", "must be above 0 and up to 1000"),
        ("", "is empty"),
        ("hub", r"splits test, train side by side.*like hub/test-00000-of-00001.parquet"),
        ("empty", "holds no file of dialogues"),
        ("splits", "name one, like splits/test"),
    ],
)
def test_a_mistake_is_named(folder, names, message):
    (folder / "empty").mkdir()
    (folder / "hub").mkdir()
    for split in ("train", "test"):
        (folder / "hub" / f"{split}-00000-of-00001.parquet").write_text("")
    (folder / "splits" / "train").mkdir(parents=True)
    (folder / "splits" / "test").mkdir()
    (folder / "splits" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=message):
        find_sources(names)


def test_every_entry_of_a_folder_is_read_or_named(tmp_path):
    record = b'{"prompt": "q", "completion": "a"}\n'
    read = ["a.jsonl", "B.JSONL", "c.csv", "d.tsv", "e.jsonl.bz2", "f.json.xz", "g.Parquet"]
    read += ["sub/h.ndjson", "i.jsonl.zstd", "j.feather"]
    errors = ["data.zip", "k.jsonl.part", "l", "m.JSONL.bak", "pipe", "dangling.jsonl", "n.tgz"]
    noted = ["README.md", ".hidden.jsonl", "notes.txt", "dataset_info.json", "LICENSE"]
    noted += ["chat_template.jinja", "template.txt"]
    for name in (*read, *errors[:4], *noted):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PK\x03\x04" if name == "data.zip" else record)
    (tmp_path / "notes.txt").write_text("what was done")
    (tmp_path / "template.txt").write_text("{% for message in messages %}{{ message }}{% endfor %}")
    (tmp_path / "n.tgz").write_bytes(b"\x1f\x8b\x08")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name} outside"
    outside.mkdir()
    (outside / "o.jsonl").write_bytes(record)
    (tmp_path / "linked").symlink_to(outside)
    listing = list_sources(str(tmp_path))
    found = {str(source.path.relative_to(tmp_path)) for source in listing.sources}
    assert found == {*read, "linked/o.jsonl"}
    by_kind = {kind: set() for kind in ("unread_entry", "passed_over")}
    for entry in listing.unread:
        by_kind[entry.problem.kind].add(str(entry.path.relative_to(tmp_path)))
    assert by_kind == {"unread_entry": set(errors), "passed_over": {*noted, "loop"}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "not the list of files"),
        ("[" * 5000, "not the list of files"),
        ('{"_data_files": []}', "not the list of files"),
        ('{"_data_files": [{"filename": "../a.jsonl"}]}', "must name files of this folder"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow does not exist"),
    ],
)
def test_a_saved_dataset_with_a_broken_list_is_refused(folder, state, message):
    (folder / "state.json").write_text(state)
    with pytest.raises(DataError, match=message):
        find_sources(".")


def test_a_data_set_without_splits_is_refused(folder):
    (folder / "dataset_dict.json").write_text("")
    (folder / "inner" / "d.jsonl.zst").unlink()
    (folder / "inner").rmdir()
    with pytest.raises(DataError, match="not one split"):
        find_sources(".")


def test_a_missing_file_is_told_by_the_setting_that_names_it(folder):
    for setting in ("train_data_file", "eval_data_file", "FILE"):
        with pytest.raises(DataError, match=f"does not exist; {setting} takes files"):
            find_sources("gone.jsonl", setting=setting)


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("a.pkl", b"\x80\x04\x95", "a pickle", "export it as .jsonl or .parquet"),
        ("a.zip", b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it"),
        ("a.npy", b"\x93NUMPY", "a NumPy array", "export it as .jsonl or .parquet"),
        (
            "a.tgz",
            gzip.compress(bytes(257) + b"ustar", mtime=0),
            "a tar archive, inside of gzip",
            "unpack",
        ),
        ("a.tar.bz2", bz2.compress(bytes(257) + b"ustar"), "a tar archive, ins", "unpack it"),
        ("a.txt.gz", gzip.compress(b"{}", mtime=0)[:9], "gzip", "give it an ending that is read"),
        ("a.txt", b'{"a": 1}', "JSON", "give it an ending that is read"),
    ],
)
def test_what_is_to_be_done_with_a_file_of_another_kind_is_told(tmp_path, name, content, what, fix):
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / name).write_bytes(content)
    [entry] = list_sources(str(tmp_path)).unread
    assert entry.problem.reason.startswith(f"it is {what}")
    assert entry.problem.fix.startswith(fix)
    with pytest.raises(DataError, match=f"it is {what}.*; {fix}"):
        list_sources(str(tmp_path / name))
