import errno
import gzip
import json
from functools import partial

import pytest
import zstandard
from hypothesis import given, settings

from hunyuan_train import whole_file
from hunyuan_train.data.records import convert
from hunyuan_train.data.records.convert import open_output
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from tests.data.dialogues import WEATHER, call, chat, hard_text, kinds_of, read, records

to_record = partial(convert.to_record, grammar=HUNYUAN_A13B)


def _rendered(record):
    return render(read(record)).targets, render(read(record)).history


@settings(max_examples=100)
@given(record=records(text=hard_text))
def test_a_converted_record_teaches_the_same(record):
    converted = json.loads(json.dumps(to_record(read(record))))
    assert _rendered(converted) == _rendered(record)
    assert to_record(read(converted)) == converted


SWITCHING = chat(
    "/no_think a",
    "<think>\n\n</think>\n<answer>\nb\n</answer>",
    "c",
    "<think>\nr\n</think>\n<answer>\nd\n</answer>",
)
FOREIGN = {
    "alpaca": {"instruction": "Q", "input": "x", "output": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "thoughts": {"question": "Q", "think": "r", "answer": "A"},
    "fast_tags": chat("/no_think请", "<think>\n\n</think>\n<answer>\nA\n</answer>"),
    "loose_tags": chat("Q", "<think>r</think>A"),
    "context": chat("Q", "A", "Q", "<think>\nr\n</think>\n<answer>\nA\n</answer>"),
    "switching": SWITCHING,
    "calls": {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "Q"},
            call(),
            {"role": "tool", "content": {"t": 1}},
            {"role": "assistant", "content": "A"},
        ],
    },
}


@pytest.mark.parametrize("record", FOREIGN.values(), ids=FOREIGN)
def test_every_form_becomes_a_canonical_record_that_teaches_the_same(record):
    converted = to_record(read(record))
    assert kinds_of(converted) <= {"history_only"}
    assert _rendered(converted) == _rendered(record)


def test_texts_of_a_canonical_record_carry_no_tags():
    converted = to_record(read(FOREIGN["thoughts"]))
    assert converted == {
        "mode": "slow",
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A", "reasoning_content": "r"},
        ],
    }
    fast = to_record(read(chat("/no_think Q", "<think>\n\n</think>\n<answer>\nA\n</answer>")))
    assert fast == chat("Q", "A", mode="fast")


def test_fields_that_training_does_not_read_are_kept():
    record = chat("a", "b", id="7", source={"x": [1]})
    assert to_record(read(record)) == record


def test_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "o.jsonl"
    path.write_text("before")

    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_file.os, "fsync", refuse)
    with (
        pytest.raises(DataError, match=r"o.jsonl cannot be written \(No space left on device\)"),
        open_output(path) as file,
    ):
        file.write("half")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_link_is_followed_to_the_file_it_names(tmp_path):
    (tmp_path / "real.jsonl").write_text("before")
    (tmp_path / "o.jsonl").symlink_to("real.jsonl")
    with open_output(tmp_path / "o.jsonl") as file:
        file.write("after")
    assert (tmp_path / "o.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_text() == "after"
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o444 == 0o444


def _write_half(path):
    with open_output(path) as file:
        file.write("half")
        raise RuntimeError


@pytest.mark.parametrize(
    ("name", "open_input"),
    [("o.jsonl", open), ("o.jsonl.gz", gzip.open), ("o.jsonl.zst", zstandard.open)],
)
def test_output_is_compressed_by_its_name_and_appears_only_whole(tmp_path, name, open_input):
    path = tmp_path / name
    with open_output(path) as file:
        file.write("请\n")
        assert not path.exists()
    with open_input(path, "rt", encoding="utf-8") as file:
        assert file.read() == "请\n"
    with pytest.raises(RuntimeError):
        _write_half(path)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    with open_input(path, "rt", encoding="utf-8") as file:
        assert file.read() == "请\n"
