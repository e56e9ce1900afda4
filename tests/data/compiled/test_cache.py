import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled import build, cache
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.errors import DataError
from tests.data.dialogues import chat
from tests.kill_moments import end_of, kill_at_work

PATIENCE_SECONDS = 240


@pytest.fixture
def big_data(tmp_path, tiny_data):
    """Enough records that compiling takes a second or two."""
    path = tmp_path / "big.jsonl"
    text = tiny_data.read_text(encoding="utf-8")
    path.write_text("".join(text.replace('"id": "', f'"id": "{n}-') for n in range(60)), "utf-8")
    return path


def _folders(tmp_path):
    cache_dir = tmp_path / "cache"
    return [path for path in cache_dir.glob("*") if path.is_dir()]


def _contents(dataset):
    return [dataset.sample(sample).tokens.tolist() for sample in range(len(dataset))]


def test_a_second_start_opens_what_the_first_built(prepare, tiny_data, monkeypatch):
    first = prepare(tiny_data)
    monkeypatch.setattr(cache, "build_dataset", None)  # not called again
    second = prepare(tiny_data)
    assert second.fingerprint == first.fingerprint
    assert second.summary == first.summary
    assert _contents(second) == _contents(first)


def test_the_number_of_processes_changes_nothing(prepare, big_data, monkeypatch):
    monkeypatch.setattr("hunyuan_train.data.reading.workers.BYTES_PER_WORKER", 1 << 20)
    one = prepare(big_data, max_seq_length=1024)
    monkeypatch.setattr(cache, "_hash_code", lambda: "another cache entry")
    two = prepare(big_data, max_seq_length=1024, num_workers=2)
    assert two.fingerprint == one.fingerprint
    assert two.summary == one.summary


@pytest.mark.parametrize("name", ["data/rendering/encode.py", "families/grammar/tokenizer.py"])
def test_a_comment_in_our_code_builds_nothing_anew(tmp_path, monkeypatch, name):
    for room in ("data", "families"):
        shutil.copytree(cache.PACKAGE / room, tmp_path / room)
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    before = cache._hash_code.__wrapped__()
    file = tmp_path / name
    file.write_text(f"# Another comment.\n{file.read_text()}")
    assert cache._hash_code.__wrapped__() == before
    file.write_text(f"{file.read_text()}\nanother = 1\n")
    assert cache._hash_code.__wrapped__() != before


def test_the_name_of_the_file_does_not_matter_and_its_content_does(prepare, write_records):
    dataset = prepare(write_records([chat("a", "b")], "a.jsonl"))
    same = prepare(write_records([chat("a", "b")], "same.jsonl"))
    other = prepare(write_records([chat("a", "c")], "other.jsonl"))
    assert same.fingerprint == dataset.fingerprint
    assert same.origin(0).endswith("same.jsonl:1")
    assert other.fingerprint != dataset.fingerprint


def test_a_changed_file_is_compiled_again(prepare, write_records):
    first = prepare(write_records([chat("a", "b")]))
    second = prepare(write_records([chat("a", "b " * 99), chat("c", "d " * 99)]))
    assert (len(first), len(second)) == (1, 2)


@pytest.mark.parametrize(
    "settings", [{"mode": "fast"}, {"history": "keep"}, {"max_seq_length": 2048}, {"now": None}]
)
def test_settings_have_entries_of_their_own(prepare, write_records, tmp_path, settings):
    path = write_records([chat("a", "b", "c", "d")])
    prepare(path)
    prepare(path, **settings)
    assert len(_folders(tmp_path)) == (1 if settings == {"now": None} else 2)


def test_a_damaged_entry_is_built_again(prepare, tiny_data, tmp_path, caplog):
    first = prepare(tiny_data)
    expected = _contents(first)
    [folder] = _folders(tmp_path)
    os.truncate(folder / "tokens.bin", 100)
    assert _contents(prepare(tiny_data)) == expected
    assert "is damaged and is built again" in caplog.text


def test_errors_in_the_data_name_place_and_remedy_and_leave_no_entry(
    prepare, write_records, tmp_path
):
    path = write_records([chat("a", "b"), chat("a", ""), chat("", "b")])
    with pytest.raises(DataError, match=r"has 2 error\(s\)") as caught:
        prepare(path)
    message = str(caught.value)
    assert f"{path}:2: messages[1].content: an answer without text" in message
    assert f"{path}:3: messages[0].content: a question without text" in message
    assert "data check" in message
    assert _folders(tmp_path) == []


def test_a_policy_of_drop_leaves_records_out_and_counts_them(prepare, write_records):
    path = write_records([chat("a", "b"), chat("a", ""), chat("a", "b")])
    dataset = prepare(path, data_policy="empty_answer=drop,duplicate=drop")
    assert len(dataset) == 1
    assert dataset.summary.num_dropped == {"empty_answer": 1, "duplicate": 1}
    assert dataset.summary.num_records == 3


def test_nothing_left_is_an_error(prepare, write_records):
    with pytest.raises(DataError, match="1 records: empty_answer left 1 out"):
        prepare(write_records([chat("a", "")]), data_policy="empty_answer=drop")
    path = str(write_records([chat("a", "b " * 99), chat("c", "d " * 99)]))
    with pytest.raises(DataError, match="of 2 records: eval_overlap left 2 out"):
        prepare(path, eval_data_file=path, data_policy="eval_overlap=drop")
    with pytest.raises(DataError, match="overlong left 2 out"):
        prepare(path, max_seq_length=16, overlong="drop")


def test_a_held_out_share_is_chosen_by_content_and_splits_nothing_in_two(prepare, write_records):
    records = [chat(f"question {number}", "b", "c", "d", mode="fast") for number in range(200)]
    path = write_records(records)
    shuffled = write_records(list(reversed(records)), "shuffled.jsonl")

    def lines(split, file=path):
        dataset = prepare(file, split, eval_fraction=0.2)
        return {dataset.records[sample["record"]]["hash"] for sample in dataset.samples}

    train, held_out = lines("train"), lines("eval")
    assert train | held_out == lines("train", shuffled) | lines("eval", shuffled)
    assert lines("eval", shuffled) == held_out
    assert not train & held_out
    summary = prepare(path, "eval", eval_fraction=0.2).summary
    assert summary.num_records == len(held_out)
    assert 20 <= len(held_out) <= 60


def test_an_eval_file_is_its_own_split(prepare, write_records):
    path = write_records([chat("a", "b")])
    eval_path = write_records([chat("c", "d"), chat("e", "f")], "eval.jsonl")
    assert len(prepare(path, "eval", eval_data_file=str(eval_path))) == 2
    with pytest.raises(DataError, match="set eval_data_file or eval_fraction"):
        prepare(path, "eval")


def test_questions_of_the_eval_file_are_found_in_the_training_data(prepare, write_records):
    path = write_records([chat("a", "b"), chat("c", "d", "e", "f")])
    eval_path = write_records([chat("c", "d", "e", "another answer")], "eval.jsonl")
    dataset = prepare(path, eval_data_file=str(eval_path))
    assert dataset.summary.num_findings["eval_overlap"] == 1
    with pytest.raises(DataError, match=rf"{path}:2: .* its question is in the evaluation set"):
        prepare(path, eval_data_file=str(eval_path), data_policy="eval_overlap=error")
    assert len(prepare(path, eval_data_file=str(eval_path), data_policy="eval_overlap=drop")) == 1


def test_a_question_asked_in_the_other_mode_is_the_same_question(prepare, write_records):
    path = write_records([chat("c", "b", mode="fast"), chat("/no_think请", "b", mode="fast")])
    eval_path = write_records([chat("c", "a", think="t"), chat("请", "b")], "eval.jsonl")
    dataset = prepare(path, eval_data_file=str(eval_path))
    assert dataset.summary.num_findings["eval_overlap"] == 2


def test_a_question_is_never_on_both_sides_of_a_held_out_share(prepare, write_records):
    records = [chat(f"question {n % 40}", f"answer {n}") for n in range(200)]
    path = write_records(records)
    sides = [
        {int(dataset.records[record]["line"]) % 40 for record in dataset.samples["record"]}
        for dataset in (prepare(path, split, eval_fraction=0.3) for split in ("train", "eval"))
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_another_builder_that_was_faster_is_no_error(prepare, tiny_data, tmp_path, monkeypatch):
    first = prepare(tiny_data)
    answers = iter([False, False])  # as if it came while we were building
    is_whole = cache.is_whole
    monkeypatch.setattr(cache, "is_whole", lambda folder: next(answers, is_whole(folder)))
    monkeypatch.setattr(cache, "_clear_abandoned", lambda folder: None)
    assert prepare(tiny_data).fingerprint == first.fingerprint
    assert len(_folders(tmp_path)) == 1


def test_a_disk_without_locks_is_said_and_works(prepare, tiny_data, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    assert len(prepare(tiny_data))
    assert "processes may work twice" in caplog.text


def test_weights_of_messages_are_kept_also_when_they_come_late(prepare, write_records, monkeypatch):
    monkeypatch.setattr("hunyuan_train.data.reading.readers.BLOCK_BYTES", 2000)
    records = [chat(f"question {number}", "answer", mode="fast") for number in range(100)]
    records[80]["messages"][1]["weight"] = 0.5
    dataset = prepare(write_records(records))
    for number in range(100):
        sample = dataset.sample(number)
        expected = 0.5 if number == 80 else 1.0
        assert set(sample.weights[sample.spans != 0].tolist()) == {expected}
        assert not sample.weights[sample.spans == 0].any()


def test_a_full_disk_is_an_error_with_a_remedy(prepare, tiny_data, monkeypatch, tmp_path):
    def fill_up(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "fsync", fill_up)
    with pytest.raises(
        DataError, match="No space left on device; free some room, or set cache_dir"
    ):
        prepare(tiny_data)
    assert _folders(tmp_path) == []


def _start(queue, path, cache_dir, tokenizer):
    """Prepare in a process of its own, which a fork starts at once."""

    def run():
        config = DataConfig(
            train_data_file=str(path), cache_dir=str(cache_dir), max_seq_length=1024
        )
        queue.put(prepare_dataset(config, tokenizer).fingerprint)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.fixture
def queue():
    return multiprocessing.get_context("fork").Queue()


def test_processes_that_start_together_agree(queue, big_data, tmp_path, tokenizer):
    processes = [_start(queue, big_data, tmp_path / "cache", tokenizer) for _ in range(3)]
    fingerprints = {queue.get(timeout=PATIENCE_SECONDS) for _ in processes}
    for process in processes:
        process.join()
    assert len(fingerprints) == 1
    assert len(_folders(tmp_path)) == 1


def test_a_start_after_ten_kills_is_right(
    queue, big_data, tmp_path, tokenizer, prepare, monkeypatch
):
    monkeypatch.setattr("hunyuan_train.data.reading.readers.BLOCK_BYTES", 1 << 16)

    def begin():
        for whole in _folders(tmp_path):
            if not whole.name.endswith(".building"):
                shutil.rmtree(whole)
        unread = multiprocessing.get_context("fork").Queue()  # a kill may leave it locked
        return _start(unread, big_data, tmp_path / "cache", tokenizer)

    began = time.monotonic()
    assert end_of(begin()) == 0
    seconds = time.monotonic() - began
    num_killed_while_writing = 0
    for kill in range(10):
        kill_at_work(begin, (kill + 1) / 40 * seconds)  # of a start, the writing comes early
        num_killed_while_writing += any(
            path.name.endswith(".building") for path in _folders(tmp_path)
        )
    assert num_killed_while_writing
    dataset = prepare(big_data, max_seq_length=1024)
    undisturbed = _start(queue, big_data, tmp_path / "undisturbed", tokenizer)
    assert queue.get(timeout=PATIENCE_SECONDS) == dataset.fingerprint
    undisturbed.join()
    assert [path.name for path in _folders(tmp_path) if path.name.endswith(".building")] == []


def test_untagged_data_asks_for_a_mode_once_and_each_answer_has_its_own_entry(
    prepare, write_records, tmp_path
):
    path = write_records([chat("2+2?", "4"), chat("Q", "A")])
    refuse = {"data_policy": "untagged=error"}
    with pytest.raises(DataError, match=r"^2 record\(s\) state no mode") as refused:
        prepare(path, **refuse)
    question = str(refused.value)
    for mode, sample in (
        (
            "fast",
            r"/no_think 2+2?<|extra_0|>[[<think>\n\n</think>\n<answer>\n4\n</answer><|eos|>]]",
        ),
        ("slow", r"\n</think>\n<answer>\n4\n</answer><|eos|>]]"),
        ("plain", "<|startoftext|>2+2?<|extra_0|>[[4<|eos|>]]"),
    ):
        assert sample in question.partition(f"--mode {mode:5}  ")[2].split("\n")[1]
    assert _folders(tmp_path) == []
    assert prepare(path, mode="fast", **refuse).summary.num_fast == 2
    assert prepare(path, mode="plain", **refuse).summary.num_plain == 2
    assert len(_folders(tmp_path)) == 2


def test_a_question_about_modes_stands_behind_other_errors(prepare, write_records):
    path = write_records([chat("a", "b"), chat("c", "")])
    with pytest.raises(
        DataError, match=r"(?s):2: .*empty_answer=drop.*1 record\(s\) state no mode"
    ):
        prepare(path, data_policy="untagged=error")


def test_records_say_their_mode_one_by_one(prepare, write_records):
    path = write_records([chat("a", "b", mode="plain"), chat("a", "b", mode="fast")])
    summary = prepare(path, data_policy="untagged=error").summary
    assert (summary.num_plain, summary.num_fast) == (1, 1)


def test_tests_leave_nothing_in_the_home_of_their_user():
    assert Path.home().name.startswith("hunyuan-tests-home-")
    assert cache.DEFAULT_CACHE_DIR.is_relative_to(Path.home())
