"""The pattern that text is cut by gives the pieces of the published one."""

import itertools

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.families.grammar.hunyuan_a13b.tokens import QUICK_PATTERN, SPLIT_PATTERN
from tests.data.dialogues import hard_text

BLANKS = " \t\v\f\r\n\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff"
OTHERS = "ab'Sſ1²٣.,<|>{}#é你。豈ﬁ🙂\u0301\x00\U0010fffe"  # noqa: RUF001
MARK = "\U0010ffff"


@pytest.fixture(scope="module")
def encodings():
    """Any two bytes of a piece make a token, so that tokens tell where pieces begin."""
    single = [bytes([byte]) for byte in range(256)]
    pairs = [first + second for first, second in itertools.product(single, single)]
    ranks = {token: rank for rank, token in enumerate([*single, *pairs])}
    return [
        tiktoken.Encoding(
            "pairs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={MARK: len(ranks)}
        )
        for pattern in (SPLIT_PATTERN, QUICK_PATTERN)
    ]


def encode(encodings, text):
    return [one.encode(text, allowed_special="all", disallowed_special=()) for one in encodings]


def test_every_short_text_of_blanks_and_others_is_cut_alike(encodings):
    num_cut = 0
    for length in range(1, 6):
        for characters in itertools.product(" \t\na.", repeat=length):
            text = "".join(characters)
            published, ours = encode(encodings, text)
            assert ours == published, repr(text)
            num_cut += len(published) > len(text) / 2 + 0.5  # more tokens than if it were one piece
    assert num_cut > 1000


@given(
    st.text(st.sampled_from(BLANKS + OTHERS) | st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from([*BLANKS, *OTHERS, "  ", "\n\n", "'ll", MARK])).map("".join)
    | hard_text.map(lambda text: text.encode(errors="replace").decode())
)
def test_any_text_is_cut_alike(encodings, text):
    published, ours = encode(encodings, text)
    assert ours == published
