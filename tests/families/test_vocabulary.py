"""A real model is trained with its own vocabulary, or the mistake is named."""

import base64
import json
from dataclasses import replace

import pytest

from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.families.grammar import find
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.chat_template import CHAT_TEMPLATE
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.vocabulary import check_vocabulary

BYTES = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]
WORDS = [base64.b64encode(f"word {number}".encode()).decode() for number in range(120)]


def _write(folder, tokens, **files):
    folder.mkdir()
    lines = [f"{token} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "hy.tiktoken").write_text("".join(lines))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return load_tokenizer(folder)


@pytest.fixture
def own(tmp_path):
    return _write(tmp_path / "model", BYTES + WORDS)


@pytest.fixture
def shape(own):
    ids = {"eos_token_id": own.eos_id, "pad_token_id": own.pad_id, "eod_token_id": own.stop_ids[1]}
    return replace(TINY, vocab_size=own.vocab_size, **ids)


def test_the_models_own_tokenizer_is_taken_wherever_it_lies(own, shape, tmp_path):
    check_vocabulary(str(own.folder), shape, own)
    check_vocabulary(str(own.folder), shape, _write(tmp_path / "copy", BYTES + WORDS))
    padded = replace(shape, vocab_size=shape.vocab_size + 58)  # as some round the embedding up
    check_vocabulary(str(own.folder), padded, own)


@pytest.mark.parametrize("cut", [*range(1, 12), 100, 120])
@pytest.mark.parametrize("has_own", [True, False])
def test_a_shorter_vocabulary_is_refused(own, shape, tmp_path, cut, has_own):
    other = _write(tmp_path / "other", (BYTES + WORDS)[:-cut])
    if not has_own:
        (own.folder / "hy.tiktoken").unlink()
        find._load.cache_clear()
    with pytest.raises(ConfigError, match="so its ids are shifted; set tokenizer_name_or_path"):
        check_vocabulary(str(own.folder), shape, other)


def test_other_words_of_the_same_number_are_refused(own, shape, tmp_path):
    other = _write(tmp_path / "other", BYTES + WORDS[::-1])
    with pytest.raises(ConfigError, match=r"is not the one in .*model, with which the model was"):
        check_vocabulary(str(own.folder), shape, other)


@pytest.mark.parametrize("difference", [-1, 1])
def test_sizes_decide_where_config_names_no_ids(own, shape, difference):
    bare = dict.fromkeys(("eos_token_id", "pad_token_id", "eod_token_id"))
    other = replace(shape, vocab_size=shape.vocab_size + difference, **bare)
    with pytest.raises(ConfigError, match=r"config\.json says"):
        check_vocabulary(str(own.folder), other, own)


def test_a_preset_takes_any(own):
    check_vocabulary("tiny", TINY, own)


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens__json": {"<|my_tool|>": 9000}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"9000": {"content": "<|my_tool|>"}}}},
        {"tokenizer_config__json": {"additional_special_tokens": ["<|my_tool|>", "<|eos|>"]}},
        {"special_tokens_map__json": {"additional_special_tokens": [{"content": "<|my_tool|>"}]}},
        {"special_tokens_map__json": {"pad_token": "<|my_tool|>"}},
        {"tokenizer__json": {"added_tokens": [{"id": 9000, "content": "<|my_tool|>"}]}},
    ],
)
def test_added_tokens_are_told(tmp_path, files):
    [remark] = _write(tmp_path / "other", BYTES, **files).remarks
    assert "adds 1 token(s) to the vocabulary (<|my_tool|>), which are not read" in remark


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": CHAT_TEMPLATE + "{{ 'x' }}"},
        {"tokenizer_config__json": {"chat_template": "{{ messages }}"}},
        {"tokenizer_config__json": {"chat_template": [{"name": "default", "template": "x"}]}},
    ],
)
def test_another_template_is_told(tmp_path, files):
    [remark] = _write(tmp_path / "other", BYTES, **files).remarks
    assert "is not the released one and is not read" in remark


@pytest.mark.parametrize("content", ["{", "[" * 9000, "null", "[]", '{"chat_template": 3}'])
def test_what_is_released_or_broken_says_nothing(tmp_path, content):
    files = {"chat_template__jinja": CHAT_TEMPLATE, "tokenizer_config__json": content}
    assert _write(tmp_path / "other", BYTES, **files).remarks == ()


def test_a_special_token_with_another_id_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gives <\|eos\|> the id 127960, and by its ranks it is"):
        _write(tmp_path / "other", BYTES, added_tokens__json={"<|eos|>": 127960})
