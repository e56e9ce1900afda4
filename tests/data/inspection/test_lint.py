import numpy as np
import pytest

from hunyuan_train.data.compiled.compile import CompileSettings
from hunyuan_train.data.compiled.repeats import SeenHashes
from hunyuan_train.data.inspection.lint import LintOptions, lint_sources
from hunyuan_train.data.inspection.stats import summarise
from hunyuan_train.data.reading.sources import find_sources
from hunyuan_train.errors import DataError
from tests.data.dialogues import chat
from tests.data.records.test_record import CASES, GOOD

TAGGED = "<think>\nr\n</think>\n<answer>\nA\n</answer>"


@pytest.fixture
def lint(write_records, tokenizer):
    def run(records, **settings):
        path = write_records(records)
        options = LintOptions(tokenizer_folder=tokenizer.folder)
        policy = {"untagged": "note"}
        settings = CompileSettings(**{"max_seq_length": 4096, "policy": policy, **settings})
        return lint_sources(find_sources(str(path)), settings, options, num_workers=1)

    return run


@pytest.mark.parametrize("name", [*CASES, *GOOD])
def test_training_refuses_what_the_linter_refuses_and_nothing_else(
    lint, prepare, write_records, name
):
    record = CASES[name][0] if name in CASES else GOOD[name]
    report = lint([record])
    path = write_records([record])
    if report.num_errors:
        with pytest.raises(DataError, match=r"has \d+ error\(s\)"):
            prepare(path)
    else:
        assert len(prepare(path)) == report.counts["samples"]


def test_numbers_are_those_of_the_compiled_data(lint, prepare, tiny_data, tokenizer):
    options = LintOptions(tokenizer_folder=tokenizer.folder)
    settings = CompileSettings(max_seq_length=4096)
    stats = summarise(lint_sources(find_sources(str(tiny_data)), settings, options))
    summary = prepare(tiny_data).summary
    assert stats.tokens is not None
    assert stats.tokens.num_samples == summary.num_samples
    assert stats.tokens.num_tokens == summary.num_tokens
    assert stats.tokens.num_label_tokens == summary.num_label_tokens
    assert stats.tokens.growth == pytest.approx(summary.growth)
    assert sum(number for _, number in stats.tokens.bins) == summary.num_samples
    assert sum(stats.tokens.label_share_by_span.values()) == pytest.approx(1)
    assert stats.turns == {1: 177, 2: 73, 3: 10}
    assert sum(turns * number for turns, number in stats.turns.items()) == summary.num_turns


@pytest.mark.parametrize(
    ("answer", "script"),
    [
        ("plain", "Latin"),
        ("déjà vu", "Latin"),
        ("你好", "Chinese"),
        ("漢字とかな", "Japanese"),
        ("서울 漢字", "Korean"),
        ("привет", "Cyrillic"),
        ("مرحبا", "Arabic"),
    ],
)
def test_the_script_is_that_of_the_answer(lint, answer, script):
    assert lint([chat("question", answer)]).scripts == {script: 1}


@pytest.mark.parametrize(
    ("records", "advice"),
    [
        ([chat("a", "b")], "no dialogue is in a mode"),
        (
            [chat("a", "b"), chat("a", "c", mode="fast")],
            "50.0% of the dialogues are in neither mode",
        ),
        ([chat("a", "b", mode="fast")], "all tagged dialogues are fast: slow mode may fade"),
        (
            [chat("a", f"b{n}", mode="fast") for n in range(40)] + [chat("a", TAGGED)],
            "only 2.4% of the dialogues are slow",
        ),
        ([chat("a", "b", mode="fast")], "of the loss is on tags and end tokens"),
    ],
)
def test_advice_names_what_the_numbers_mean(lint, records, advice):
    assert any(advice in line for line in summarise(lint(records)).advice)


def test_balanced_data_gets_no_advice(lint):
    long = "a longer answer of many words " * 20
    slow = chat("a", f"<think>\n{long}\n</think>\n<answer>\n{long}\n</answer>")
    assert summarise(lint([chat("a", long, mode="fast"), slow])).advice == []


def test_the_set_of_seen_hashes_is_exact():
    generator = np.random.default_rng(0)
    seen, known = SeenHashes(), set()
    for _ in range(50):
        hashes = generator.integers(0, 500, generator.integers(1, 40)).astype(np.uint64)
        expected = []
        for value in hashes.tolist():
            expected.append(value in known)
            known.add(value)
        assert seen.add(hashes).tolist() == expected
    assert sum(len(run) for run in seen.runs) == len(known)
    assert len(seen.runs) <= 10
    assert not seen.contains(np.array([1000], np.uint64))[0]
