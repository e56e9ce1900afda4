"""Tokens that a user adds: how text is cut with them, what is refused, what a folder keeps."""

import json
from pathlib import Path

import pytest
import tokenizers

from hunyuan_train.errors import DataError
from hunyuan_train.export.served_tokenizer import (
    add_to_fast_tokenizer,
    build_fast_tokenizer,
    write_new_tokens,
)
from hunyuan_train.families.grammar import find
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.families.grammar.hy_v3.stand_in import special_ids, write_stand_in

WORDS = ["<gene:BRCA1>", "<gene:", "δοκιμή"]
TEXT = "a <gene:BRCA1>, <gene:x> and δοκιμή! <gene:BRCA1>"


def write_words(folder: Path, content: str = "\n".join(WORDS)) -> Path:
    path = folder / "words.txt"
    path.write_text(content, encoding="utf-8")
    return path


def without_gaps(folder: Path, **settings: str) -> Path:
    """The stand-in with its markers right behind its pairs, as the published file has them."""
    ids = {str(300 + index): name for index, name in enumerate(special_ids().values())}
    return write_stand_in(folder, ids, **settings)


@pytest.fixture(params=["hy.tiktoken", "tokenizer.json"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return TINY_TOKENIZER if request.param == "hy.tiktoken" else without_gaps(tmp_path / "base")


def test_text_holds_them_wherever_they_stand_and_as_clients_find_them(published, tmp_path) -> None:
    plain, ours = load_tokenizer(published), load_tokenizer(published, write_words(tmp_path))
    first = plain.vocab_size
    assert ours.new_tokens == {word: first + index for index, word in enumerate(WORDS)}
    assert (ours.vocab_size, ours.num_added) == (first + 3, 3)
    ids = ours.encode(TEXT)
    assert [one for one in ids if one >= first] == [first, first + 1, first + 2, first]
    assert ours.encode_marked(TEXT).tolist() == ids
    assert ours.decode(ids) == TEXT
    assert sum(ours.token_num_bytes[ids]) == len(TEXT.encode())
    assert ours.encode("nothing new") == plain.encode("nothing new")
    if published == TINY_TOKENIZER:
        client = build_fast_tokenizer(ours)
    else:
        add_to_fast_tokenizer(published / "tokenizer.json", ours.new_tokens)
        client = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
    assert client.encode(TEXT, add_special_tokens=False).ids == ids


def test_a_folder_that_keeps_them_gives_the_same_tokenizer_and_takes_more(tmp_path) -> None:
    published = without_gaps(tmp_path / "base")
    ours = load_tokenizer(published, write_words(tmp_path))
    kept = without_gaps(tmp_path / "kept")
    add_to_fast_tokenizer(kept / "tokenizer.json", ours.new_tokens)
    write_new_tokens(kept, ours.new_tokens)
    again = load_tokenizer(kept)
    assert (again.encode(TEXT), again.num_added) == (ours.encode(TEXT), 0)
    assert again.special_tokens == ours.special_tokens
    (tmp_path / "more.txt").write_text("<gene:TP53>\n")
    more = load_tokenizer(kept, tmp_path / "more.txt")
    assert load_tokenizer(kept, str(tmp_path / "more.txt")) is more  # read once, as for processes
    assert load_tokenizer(kept, None) is again
    assert more.encode("<gene:TP53><gene:") == [ours.vocab_size, ours.new_tokens["<gene:"]]
    (kept / "tokenizer_new_tokens.json").write_text(json.dumps({"<gene:": 5}))
    find._load.cache_clear()
    with pytest.raises(DataError, match="does not number 1 tokens from"):
        load_tokenizer(kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds 0 tokens; write 1 to"),
        (" \n\r\n", "holds 0 tokens"),
        ("<x1>\n<x1>\n", "'<x1>' on several lines"),
        ("<x1>\na\n", "line 2 is 'a': the vocabulary has it as a token already"),
        ("<|eos|>", "as a marker, which text never becomes"),
        ("cafe\u0301s", "not in NFC"),
        ("x1\ufffe", "characters that no text holds"),
    ],
)
def test_what_cannot_be_added_is_refused_in_one_paragraph(tmp_path, content, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(TINY_TOKENIZER, write_words(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_markers_of_a_tokenizer_json_and_gaps_in_it_are_refused(tmp_path) -> None:
    for marker in ("<think:opensource>", "/think", "<answer>"):
        with pytest.raises(DataError, match="as a marker"):
            load_tokenizer(without_gaps(tmp_path / "base"), write_words(tmp_path, marker))
        find._load.cache_clear()
    with pytest.raises(DataError, match="leaves ids out"):
        load_tokenizer(write_stand_in(tmp_path / "gaps", special_ids()), write_words(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(TINY_TOKENIZER, tmp_path / "missing.txt")
