"""The cache never gives tokens that are not those of the file."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import xxhash

from hunyuan_train.data.compiled import build, cache, memos, verification
from hunyuan_train.data.compiled.held_out import is_bound
from hunyuan_train.data.dataset import map_array, read_identity, write_summary
from hunyuan_train.data.reading.readers import ChangedFileError
from tests.data.dialogues import chat


@pytest.fixture
def folder(prepare, write_records, tmp_path):
    prepare(write_records([chat(f"question {n}", f"answer {n}") for n in range(20)]))
    [folder] = [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]
    return folder


def _answers(dataset, tokenizer):
    return [tokenizer.decode(dataset.sample(n).tokens.tolist()) for n in range(len(dataset))]


@pytest.mark.parametrize(
    "name", ["tokens.bin", "spans.bin", "samples.bin", "records.bin", "summary.json"]
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_anywhere_is_noticed(
    folder, prepare, tmp_path, tokenizer, caplog, name, place
):
    expected = _answers(prepare(tmp_path / "data.jsonl"), tokenizer)
    path = folder / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _answers(prepare(tmp_path / "data.jsonl"), tokenizer) == expected
    assert "is damaged and is built again" in caplog.text


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("tokens", None, 0xFFFFFFFF, "the token 4294967295 is beyond the vocabulary"),
        ("samples", "target_start", 10**9, "samples lie outside of the tokens"),
        ("samples", "history_start", -1, "samples lie outside of the tokens"),
        ("samples", "record", 20, "belong to nothing"),
        ("records", "source", 1, "belong to nothing"),
    ],
)
def test_a_number_that_points_nowhere_is_noticed_though_its_hash_is_right(
    folder, tokenizer, name, field, value, message
):
    array = np.array(map_array(folder, name))
    if field:
        array[field][3] = value
    else:
        array[3] = value
    (folder / f"{name}.bin").write_bytes(array.tobytes())
    sums = {
        path.name: xxhash.xxh3_128(path.read_bytes()).hexdigest() for path in folder.glob("*.bin")
    }
    identity = read_identity(folder)
    write_summary(folder, cache.read_summary(folder), sums, identity)
    damage = verification.find_damage(folder, identity, vocab_size=tokenizer.vocab_size)
    assert message in damage


def test_ranks_pass_by_the_stamp_of_their_start_and_the_next_start_looks_again(
    folder, prepare, tmp_path, monkeypatch
):
    looked_at = []
    find_damage = cache.find_damage
    monkeypatch.setattr(
        cache, "find_damage", lambda *a, **k: looked_at.append(1) or find_damage(*a, **k)
    )
    prepare(tmp_path / "data.jsonl")
    assert not looked_at
    monkeypatch.setattr(verification, "STAMP_SECONDS", 0.0)
    prepare(tmp_path / "data.jsonl")
    assert len(looked_at) == 1


def test_an_edit_that_keeps_size_and_time_is_another_file(
    prepare, write_records, tokenizer, monkeypatch
):
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)  # as if it had lain there for long
    path = write_records([chat("a", "one")])
    before = path.stat()
    assert "one" in _answers(prepare(path), tokenizer)[0]
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "two" in _answers(prepare(path), tokenizer)[0]


def test_a_file_replaced_between_hash_and_reading_is_read_as_what_it_is(
    prepare, write_records, tokenizer, monkeypatch, caplog
):
    path = write_records([chat("a", "first")])
    other = write_records([chat("a", "other")], "other.jsonl")
    read_chunks = build.read_chunks

    def replace_first(*arguments, **options):
        if other.exists():
            shutil.move(other, path)
        return read_chunks(*arguments, **options)

    monkeypatch.setattr(build, "read_chunks", replace_first)
    assert "other" in _answers(prepare(path), tokenizer)[0]
    assert "changes while it is read" in caplog.text
    path.write_text(json.dumps(chat("a", "first")))  # what was there when the name was made
    assert "first" in _answers(prepare(path), tokenizer)[0]


def test_a_file_that_never_rests_is_refused(prepare, write_records, monkeypatch):
    path = write_records([chat("a", "b")])
    monkeypatch.setattr(cache, "hash_file", lambda path: "0" * 64)
    with pytest.raises(ChangedFileError, match="start again once it is written"):
        prepare(path)


def test_one_hint_accepts_all_kinds_and_repeats_what_was_chosen(prepare, write_records):
    records = [chat("a", "b"), chat("a", ""), chat("", "b"), {"what": 1}, chat("a", "b")]
    path = write_records(records)
    with path.open("a") as file:
        file.write("{not json}\n")
    with pytest.raises(cache.DataError) as caught:
        prepare(path, data_policy="duplicate=drop")
    hint = str(caught.value).partition("--data_policy ")[2].partition(";")[0]
    assert set(hint.split(",")) == {
        *("duplicate=drop", "empty_answer=drop", "empty_user=drop", "form=drop", "json=drop"),
        "untagged=note",  # which the fixture chooses
    }
    assert len(prepare(path, data_policy=hint)) == 1


def test_what_lies_beside_the_files_is_named_and_what_cannot_be_read_is_refused(prepare, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(chat("a", "b")))
    (folder / "README.md").write_text("about it")
    for _ in range(2):  # built, and opened
        summary = prepare(folder).summary
        assert summary.num_findings["passed_over"] == 1
        assert summary.noted_fields["passed_over"] == {"README.md": 1}
    (folder / "b.jsonl.part").write_text("")
    with pytest.raises(cache.DataError, match=r"(?s)b\.jsonl\.part.*unread_entry=note; `hunyuan"):
        prepare(folder)
    summary = prepare(folder, data_policy="unread_entry=note").summary
    assert summary.noted_fields["unread_entry"] == {"b.jsonl.part": 1}


@pytest.fixture
def two(prepare, write_records, tmp_path, monkeypatch):
    """Two files that differ in one letter, compiled, and the folder of each."""
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)  # as if they had lain there for long
    found = []
    for name in ("A", "B"):
        path = write_records([chat("q", f"from {name}")], f"{name}.jsonl")
        prepare(path)
        folders = {entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()}
        [folder] = folders - {folder for _, folder in found}
        found.append((path, folder))
    return found


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_folder_under_the_name_of_another_is_not_served(two, prepare, tokenizer, caplog, how):
    (path, folder), (_, other) = two
    shutil.rmtree(folder)
    if how == "renamed":
        other.rename(folder)  # its stamp still fits all of its files
    else:
        shutil.copytree(other, folder)
    assert "from A" in _answers(prepare(path), tokenizer)[0]
    assert "made of other data than its name says" in caplog.text


def test_weights_that_were_put_in_later_are_noticed(folder, prepare, tmp_path, caplog):
    spans = np.fromfile(folder / "spans.bin", np.uint8)
    (folder / "weights.bin").write_bytes(np.full(len(spans), 9, np.float32).tobytes())
    assert prepare(tmp_path / "data.jsonl").weights is None
    assert "is damaged and is built again" in caplog.text


def test_a_folder_that_does_not_say_what_it_was_made_of_is_not_served(two, prepare, tokenizer):
    (path, folder), (_, other) = two
    content = json.loads((other / "summary.json").read_text())
    content = {key: content[key] for key in ("summary", "sizes", "xxh3_128")}
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "summary.json").write_text(json.dumps({**content, "own_sha256": own}))
    assert "from A" in _answers(prepare(path), tokenizer)[0]


@pytest.mark.parametrize("key", ["hash", "state", "whole", "nested"])
def test_a_memo_of_a_hash_is_believed_only_as_it_was_written(two, prepare, tokenizer, key):
    (path, _), (other, _) = two
    memo, of_other = (cache._memo_of(one, path.parent / "cache") for one in (path, other))
    content, foreign = (json.loads(one.read_text()) for one in (memo, of_other))
    if key == "whole":
        content = foreign
    elif key == "hash":
        content["content"]["hash"] = foreign["content"]["hash"]
    elif key == "state":
        foreign["content"]["state"] = content["content"]["state"]
        content = foreign
    memo.write_text("[" * 100_000 if key == "nested" else json.dumps(content))
    assert "from A" in _answers(prepare(path), tokenizer)[0]


def test_a_forged_hash_of_a_file_of_another_size_is_noticed(prepare, write_records, tokenizer):
    path, other = (write_records([chat("q", text)], f"{text}.jsonl") for text in ("A", "longer"))
    prepare(path)
    prepare(other)
    cache_dir = path.parent / "cache"
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    forged = {"state": state, "hash": cache.hash_file(other)}
    cache._memo_of(path, cache_dir).write_text(memos.write_memo(str(path.resolve()), forged))
    assert "longer" not in _answers(prepare(path), tokenizer)[0]


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("below", [None, 17 * 10**18, -5, 2**64 - 1, 10**26, True, "1", 0.5, []])
def test_a_bound_of_a_held_out_share_is_believed_only_as_it_was_written(
    prepare, write_records, tmp_path, below, is_sealed
):
    path = write_records([chat(f"question {n}", "b") for n in range(20)])
    expected = len(prepare(path, eval_fraction=0.3))
    [memo] = (tmp_path / "cache").glob("*.held_out.json")
    text = json.dumps({**json.loads(memo.read_text()), "content": {"below": below}})
    if is_sealed:
        if is_bound(below):
            return  # as good as what we write
        text = memos.write_memo(memo.name.partition(".")[0], {"below": below})
    memo.write_text(text)
    assert len(prepare(path, eval_fraction=0.3)) == expected
    assert len(prepare(path, "eval", eval_fraction=0.3)) == 20 - expected
