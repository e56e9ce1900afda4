"""Data sets by name: which files a split has, and that they come."""

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub import datasets
from hunyuan_train.hub.datasets import fetch_data_names
from hunyuan_train.hub.download import RemoteFile, Repository
from hunyuan_train.hub.names import parse_data_name

RECORD = b'{"messages": []}\n'
CARD = """---
license: mit
configs:
- config_name: zh
  data_files:
  - {split: train, path: "zh/*.jsonl"}
  - {split: test, path: zh/held_out.jsonl}
- config_name: en
  default: true
  data_files: en.jsonl
---
# Talk
"""


def chosen(text, paths, tmp_path, monkeypatch, card=None):
    """The files that a name stands for, of a repository with these."""
    name = parse_data_name(text)
    files = [RemoteFile(path=path, size=0) for path in paths]
    if card:
        files.append(RemoteFile(path="README.md", size=len(card)))
        (tmp_path / "README.md").write_text(card)
    monkeypatch.setattr(datasets, "fetch_files", lambda *_: None)
    splits = datasets._find_splits(Repository(name=name, commit="main", files=files), tmp_path)
    return [file.path for file in datasets._choose_split(name, splits)]


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        (
            "hf:a/b",
            ["x.jsonl", "y.parquet", "notes.txt", "dataset_infos.json"],
            ["x.jsonl", "y.parquet"],
        ),
        ("hf:a/b", ["train.jsonl", "test.jsonl"], ["train.jsonl"]),
        ("hf:a/b:test", ["train.jsonl", "test.jsonl"], ["test.jsonl"]),
        (
            "hf:a/b:validation",
            ["data/train-00000-of-00001.parquet", "data/dev-0.parquet"],
            ["data/dev-0.parquet"],
        ),
        ("hf:a/b", ["test/a.jsonl.gz"], ["test/a.jsonl.gz"]),
    ],
)
def test_files_of_a_split_are_found_by_their_paths(text, paths, expected, tmp_path, monkeypatch):
    assert chosen(text, paths, tmp_path, monkeypatch) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:a/b", ["en.jsonl"]),
        ("hf:a/b/zh", ["zh/1.jsonl", "zh/held_out.jsonl"]),
        ("hf:a/b/zh:test", ["zh/held_out.jsonl"]),
    ],
)
def test_the_card_says_which_files_there_are(text, expected, tmp_path, monkeypatch):
    paths = ["en.jsonl", "zh/1.jsonl", "zh/held_out.jsonl"]
    assert chosen(text, paths, tmp_path, monkeypatch, CARD) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:a/b:tset", "has no split tset; it has train: name one, like hf:a/b:train"),
        ("hf:a/b/fr", "has no subset fr; it has zh, en"),
    ],
)
def test_a_split_that_is_not_there_is_told_what_there_is(text, words, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=words):
        chosen(text, ["en.jsonl"], tmp_path, monkeypatch, CARD)


def test_data_comes_and_its_name_becomes_a_folder_with_its_weight(hub, tmp_path):
    folder = hub.folder / "datasets" / "me" / "talk"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(RECORD * 500)
    (folder / "test.jsonl").write_bytes(RECORD)
    names = fetch_data_names("own.jsonl:3,hf:me/talk:train:2", download_dir=tmp_path)
    own, there = names.split(",")
    assert own == "own.jsonl:3"
    assert there.endswith("me--talk.train:2")
    kept = tmp_path / "huggingface" / "datasets" / "me--talk.train"
    assert [path.name for path in kept.iterdir() if path.is_file()] == ["train.jsonl"]
    assert (kept / "train.jsonl").read_bytes() == RECORD * 500
