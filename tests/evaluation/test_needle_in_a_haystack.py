"""Needles: texts of the length asked for, one fact each at its depth, scored by exact match."""

import re

import pytest

from hunyuan_train.evaluation.needle_in_a_haystack import make_needles, score_needles
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.shipped import TINY_TOKENIZER

TOKENIZER = load_tokenizer(TINY_TOKENIZER)
LENGTHS = [512, 2048]


def test_texts_have_their_length_and_hold_the_fact_once_at_its_depth() -> None:
    needles = make_needles(TOKENIZER, LENGTHS, number=4, seed=0)
    assert [needle.length for needle in needles] == [512] * 4 + [2048] * 4
    for needle in needles:
        assert needle.length - 24 < len(needle.question.prompt) <= needle.length
        text = TOKENIZER.decode(needle.question.prompt)
        name = re.search(r"code of the (\w+ \w+), by the text", text)[1]
        code = re.search(r"<answer>\n(\d{5})\n</answer>", needle.question.reference)[1]
        fact = f"The code of the {name} is {code}."
        assert text.count(fact) == 1
        assert len(re.findall(r"The code of the \w+ \w+ is \d{5}\.", text)) == 4
        assert text.index(fact) / len(text) == pytest.approx(needle.depth, abs=0.2)


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    first, again = (make_needles(TOKENIZER, [512], number=2, seed=0) for _ in range(2))
    assert first == again
    prompts = [needle.question.prompt for needle in first]
    assert prompts[0] != prompts[1]
    other = make_needles(TOKENIZER, [512], number=2, seed=1)
    assert all(needle.question.prompt not in prompts for needle in other)


def test_only_the_code_and_nothing_else_is_right() -> None:
    needles = make_needles(TOKENIZER, LENGTHS, number=2, seed=0)
    right = [needle.question.reference for needle in needles]
    wordy = right[3].replace("<answer>\n", "<answer>\nIt is ")
    assert score_needles(needles, right) == {"needles_512": 1.0, "needles_2048": 1.0}
    outputs = [right[0], right[0], "", wordy]
    assert score_needles(needles, outputs) == {"needles_512": 0.5, "needles_2048": 0.0}
