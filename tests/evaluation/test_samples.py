"""Which prompts are answered at the end of a run, and what is said of an answer that was cut."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from hunyuan_train.evaluation import samples
from hunyuan_train.evaluation.samples import (
    MAX_PROMPT_TOKENS,
    MAX_SAMPLED_TOKENS,
    answer_at_last,
    keep_samples,
    sample_prompts,
)
from hunyuan_train.evaluation.show_answer import show_answer
from hunyuan_train.report.content import list_sample_marks
from hunyuan_train.report.row_file import RowFile


def question(text: str, **more: object) -> dict:
    answer = {"role": "assistant", "content": "42"} | more
    return {"messages": [{"role": "user", "content": text}, answer]}


FAST = question("How many?") | {"mode": "fast"}
SLOW = question("Why?", reasoning_content="Hm.") | {"mode": "slow"}
PLAIN = question("Well?") | {"mode": "plain"}
TEXT = {"text": "It rains."}
LONG = question("word " * MAX_PROMPT_TOKENS) | {"mode": "fast"}


@pytest.mark.parametrize(
    ("records", "modes"),
    [
        ([LONG, FAST, SLOW, SLOW], ["fast", "slow"]),
        ([FAST, SLOW, TEXT], ["fast", "slow"]),
        ([TEXT], []),
        ([PLAIN], ["plain"]),
        ([PLAIN, SLOW], ["plain", "slow"]),
        ([LONG], []),
    ],
)
def test_a_short_prompt_of_each_mode_is_answered(records, modes, prepare, write_records):
    data = prepare(write_records(records), max_seq_length=16_384)
    prompts = sample_prompts(data)
    assert [mode for mode, _ in prompts] == modes
    assert all(len(ids) <= MAX_PROMPT_TOKENS for _, ids in prompts)


@pytest.mark.parametrize(
    ("wanted", "num_tokens", "is_cut"),
    [("auto", 5, True), (True, 5, False), (True, MAX_SAMPLED_TOKENS, True)],
)
def test_an_answer_that_was_cut_is_called_so(
    wanted, num_tokens, is_cut, prepare, write_records, tokenizer, tmp_path, monkeypatch
):
    clock = iter([0.0, samples.MAX_SAMPLED_SECONDS + 1])
    monkeypatch.setattr(samples, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    output = tokenizer.encode("7")[:1] * num_tokens
    asked = []

    def generate(_engine, prompts, **limits):
        asked.append(limits["max_seconds"])
        return [output for _ in prompts]

    monkeypatch.setattr(samples, "generate_dealt_out", generate)
    data = prepare(write_records([FAST]))
    [answer] = answer_at_last(wanted, None, data, tokenizer)
    assert asked == [samples.MAX_SAMPLED_SECONDS if wanted == "auto" else None]
    assert answer.cut_after == (num_tokens if is_cut else None)
    keep_samples(tmp_path, [answer], step=3)
    rows = RowFile(tmp_path, "samples.jsonl")
    rows.read_all()
    cut, bad = [f"cut after {num_tokens:,} tokens"], ["not well-formed"]
    assert list_sample_marks(rows.rows[0]) == (cut if is_cut else bad)
    shown = StringIO()
    show_answer(answer, Console(file=shown))
    assert ("was cut after" in shown.getvalue()) == is_cut


def test_none_are_asked_where_none_are_wanted():
    assert answer_at_last(False, None, None, None) == []
