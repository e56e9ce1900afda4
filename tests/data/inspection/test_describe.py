import pytest

from hunyuan_train.data.inspection.describe import (
    describe_counts,
    describe_dataset,
    describe_findings,
)
from tests.data.dialogues import chat


def test_findings_say_what_became_of_them(prepare, write_records):
    path = write_records(
        [
            chat("a <|eos|>", "b", mode="fast"),
            chat("c", ""),
            chat("d", "<think>e</think>f"),
            chat("g", "h"),
        ]
    )
    summary = prepare(path, data_policy="empty_answer=drop").summary
    assert describe_findings(summary) == (
        "1 record(s) with typed special tokens, which stay text; fixed: tags 1; "
        "left out: empty_answer 1; noted: untagged 1"
    )
    assert describe_counts(summary).startswith("3 samples (1 fast, 1 slow, 1 plain), 3 turns")


def test_what_is_only_noted_is_named_by_field_and_count(prepare, write_records):
    odd = {"mode": "fast", "source": "web", **chat("a", "b", "c", "d")}
    odd["messages"][1]["score"] = odd["messages"][3]["score"] = 1
    good = chat("g", "h", mode="fast", system="s")
    beside = {**chat("i", "j", mode="fast"), "system": "s"}
    summary = prepare(write_records([odd, good, beside])).summary
    assert describe_findings(summary) == (
        "noted: unused_field 3 (messages[].score 2, source 1), converted 1 (system 1)"
    )


@pytest.mark.parametrize(
    ("history", "earlier", "growth"),
    [
        ("strip", "<|extra_0|>b<|eos|>", "1.12"),
        ("keep", "<|extra_0|>[[<think>\\n\\n</think>\\n<answer>\\nb\\n</answer><|eos|>]]", "1.00"),
    ],
)
def test_the_sample_shows_what_becomes_of_earlier_answers(
    prepare, write_records, tokenizer, history, earlier, growth
):
    path = write_records([chat("x", "y", mode="fast"), chat("a", "b", "c", "d", mode="fast")])
    lines = describe_dataset(prepare(path, history=history), history, tokenizer)
    assert lines["sample"].startswith(f"{path}:2, loss on [[ ]]: <|startoftext|>/no_think a")
    assert earlier in lines["sample"]
    assert lines["sample"].endswith("<answer>\\nd\\n</answer><|eos|>]]")
    assert lines["history"].startswith(f"{history}: one sample per")
    assert f"; {growth} times the tokens" in lines["history"]
    assert "found" not in lines
