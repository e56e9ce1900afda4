import json

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled import fingerprint
from hunyuan_train.data.compiled.fingerprint import identify_data, list_differences
from tests.data.dialogues import chat


@pytest.fixture
def identify(prepare, tmp_path):
    """What a checkpoint would remember of some data, as it comes back from its manifest."""

    def run(files, seed=1, **settings):
        config = DataConfig(train_data_file=str(files), **settings)
        identity = identify_data(prepare(files, **settings), config, seed=seed)
        return json.loads(json.dumps(identity))

    return run


RECORD = chat("a", "<think>\nt\n</think>\n<answer>\nb\n</answer>", "c", "d")


def test_the_same_data_under_another_name_and_with_idle_settings_is_the_same(
    identify, write_records
):
    first = identify(write_records([RECORD]))
    assert list_differences(first, identify(write_records([RECORD], "moved.jsonl"))) == []
    assert list_differences(first, identify(write_records([RECORD]), overlong="drop")) == []


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"history": "keep"}, "history was strip and is keep"),
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"packing": False}, "packing was True and is False"),
        ({"max_seq_length": 64}, "max_seq_length was 4096 and is 64"),
    ],
)
def test_a_setting_that_moves_samples_is_named(identify, write_records, settings, difference):
    path = write_records([RECORD])
    assert list_differences(identify(path), identify(path, **settings)) == [difference]


def test_a_policy_that_leaves_records_out_is_named(identify, write_records):
    path = write_records([RECORD, chat("a", "b"), chat("a", "b")])
    policy = "duplicate=drop"
    assert list_differences(identify(path), identify(path, data_policy=policy)) == [
        "data_policy was None and is duplicate=drop"
    ]


def test_files_that_changed_came_or_went_are_named(identify, write_records):
    one, two = write_records([RECORD], "1.jsonl"), write_records([chat("e", "f")], "2.jsonl")
    first = identify(f"{one},{two}")
    assert list_differences(first, identify(f"{one}:2,{two}")) == [
        f"the weight of {one} was 1, is 2"
    ]
    three = write_records([chat("g", "h")], "3.jsonl")
    assert list_differences(first, identify(f"{one},{three}")) == [
        f"{two} is gone",
        f"{three} is new",
    ]
    write_records([chat("i", "j")], "2.jsonl")
    assert list_differences(first, identify(f"{one},{two}")) == [f"{two} has another content"]


def test_other_samples_of_the_same_data_are_told_of_this_program(identify, write_records):
    identity = identify(write_records([RECORD]))
    [difference] = list_differences({**identity, "samples": "others"}, identity)
    assert difference.startswith("this version of the program makes other samples")


def test_an_order_of_many_samples_is_named_for_runs_that_drew_it_as_a_whole(
    identify, write_records, monkeypatch
):
    path = write_records([RECORD, chat("e", "f")])
    drawn = identify(path)
    before = {**drawn, "rows": {**drawn["rows"]}}
    del before["rows"]["order"]  # as the first versions wrote it
    assert list_differences(before, drawn) == []
    monkeypatch.setattr(fingerprint, "TABLE_LENGTH", 1)
    keyed = identify(path)
    assert keyed["samples"] == drawn["samples"]
    [difference] = list_differences(before, keyed)
    assert difference.startswith("order was drawn as a whole and is keyed")
    assert "the version that began the run" in difference
    assert list_differences(keyed, keyed) == []
