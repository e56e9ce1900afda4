import pytest

from hunyuan_train.data.compiled.compile import CompileSettings, compile_chunk
from hunyuan_train.data.reading.readers import read_chunks
from tests.data.dialogues import chat

TURN = "word " * 20


def _compile(path, tokenizer, **settings):
    settings = CompileSettings(**settings)
    chunks = [compile_chunk(chunk, settings, tokenizer) for chunk in read_chunks(path)]
    [compiled] = [chunk for chunk in chunks if len(chunk.lines) or chunk.findings]
    return compiled


def _texts(compiled, tokenizer):
    return [
        tokenizer.decode(compiled.encoded.sample(index).tokens.tolist())
        for index in range(len(compiled.encoded.samples))
    ]


@pytest.fixture
def dialogue(write_records):
    texts = [f"{number} {TURN}" for number in range(8)]
    return write_records([chat(*texts, system="S", mode="fast"), chat("a", "b", mode="fast")])


def test_by_default_a_long_sample_is_an_error_with_its_place(dialogue, tokenizer):
    compiled = _compile(dialogue, tokenizer, max_seq_length=200)
    long = [finding for finding in compiled.findings if finding.kind == "overlong"]
    assert {finding.action for finding in long} == {"error"}
    assert str(long[0]).startswith(f"{dialogue}:1: messages: ")
    assert "more than max_seq_length 200" in long[0].reason


def test_drop_leaves_out_the_long_samples_and_only_these(dialogue, tokenizer):
    every = _compile(dialogue, tokenizer, max_seq_length=10_000)
    lengths = every.encoded.sample_lengths()
    compiled = _compile(dialogue, tokenizer, max_seq_length=200, overlong="drop")
    kept = compiled.encoded.sample_lengths().tolist()
    assert kept == [length for length in lengths.tolist() if length <= 200]
    assert len(kept) + len(compiled.findings) == len(lengths)


@pytest.mark.parametrize("history", ["strip", "keep"])
def test_drop_turns_leaves_out_the_oldest_turns_and_no_more_than_needed(
    dialogue, tokenizer, history
):
    limit = 150
    settings = {"max_seq_length": limit, "overlong": "drop_turns", "history": history}
    compiled = _compile(dialogue, tokenizer, **settings)
    every = _compile(dialogue, tokenizer, max_seq_length=10_000, history=history)
    texts = _texts(compiled, tokenizer)
    assert len(texts) == len(every.encoded.samples)
    assert compiled.encoded.sample_lengths().max() <= limit
    shortened = [text for text in texts if text not in _texts(every, tokenizer)]
    assert shortened
    for text in shortened:
        assert text.startswith("<|startoftext|>S<|extra_4|>/no_think ")
        assert text.endswith("</answer><|eos|>")
    last = max(shortened, key=lambda text: "7 word" in text)
    assert "6 word" in last
    assert "1 word" not in last
    assert {finding.action for finding in compiled.findings} == {"fix"}


def test_an_answer_that_does_not_fit_alone_is_left_out_whole(write_records, tokenizer):
    path = write_records([chat("a", "b", "c", TURN * 20, mode="fast")])
    compiled = _compile(path, tokenizer, max_seq_length=100, overlong="drop_turns")
    assert [finding.action for finding in compiled.findings] == ["drop"]
    assert len(compiled.encoded.samples) == 1


def test_a_shortened_sample_learns_what_it_learned_before(dialogue, tokenizer):
    long = _compile(dialogue, tokenizer, max_seq_length=10_000)
    short = _compile(dialogue, tokenizer, max_seq_length=150, overlong="drop_turns")
    assert sorted(short.encoded.samples["num_labels"]) == sorted(long.encoded.samples["num_labels"])


def test_a_sample_that_would_lose_all_its_labels_is_left_out(write_records, tokenizer):
    record = chat("a", "b", TURN, TURN, mode="fast")
    record["messages"][3]["train"] = False
    limits = {"max_seq_length": 70, "overlong": "drop_turns", "history": "keep"}
    compiled = _compile(write_records([record]), tokenizer, **limits)
    assert [finding.action for finding in compiled.findings] == ["drop"]
    assert len(compiled.encoded.samples) == 0
