"""The tokenizer that clients load without the vendor's code has the ids of the one with it."""

import json
import logging
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from hunyuan_train.export.served_tokenizer import build_fast_tokenizer, complete_tokenizer
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.chat_template import CHAT_TEMPLATE
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.data.dialogues import hard_text
from tests.reference import reference_file
from tests.remote_tokenizer import AUTO_MAP, write_remote_code

WORDS = load_tokenizer(TINY_TOKENIZER)
SHAPE = PRESETS["tiny"]
SPECIAL = st.sampled_from([*WORDS.special_tokens, "<|eos|>\u0338", "<|eos|", "\u0338", ">\u0338"])
BYTES = st.binary(max_size=30).map(lambda one: one.decode("utf-8", "replace"))
TEXTS = st.lists(st.text(max_size=20) | SPECIAL | hard_text | BYTES, max_size=6).map("".join)


def encode_as_published(words: Tokenizer) -> tiktoken.Encoding:
    """What the vendor's code encodes with, after NFC: names of special tokens become tokens."""
    ranks = {words.token_bytes(rank): rank for rank in range(words.num_ranks)}
    special = {one: words.special_id(one) for one in words.special_tokens}
    pattern = words.split_pattern
    return tiktoken.Encoding(
        "published", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


def assert_same_ids(text: str, fast: FastTokenizer, published: tiktoken.Encoding) -> None:
    normal = unicodedata.normalize("NFC", text)
    ids = fast.encode(text).ids
    assert ids == published.encode(normal, allowed_special="all"), repr(text)
    assert fast.decode(ids, skip_special_tokens=False) == normal


@pytest.fixture(scope="module")
def bundled() -> tuple[FastTokenizer, tiktoken.Encoding]:
    return build_fast_tokenizer(WORDS), encode_as_published(WORDS)


@settings(max_examples=100)
@given(text=TEXTS)
def test_any_text_has_the_same_ids(
    bundled: tuple[FastTokenizer, tiktoken.Encoding], text: str
) -> None:
    assert_same_ids(text, *bundled)


@pytest.mark.slow
def test_any_text_has_the_same_ids_in_the_vendors_vocabulary() -> None:
    words = load_tokenizer(reference_file("hy.tiktoken").parent)
    fast, published = build_fast_tokenizer(words), encode_as_published(words)

    @settings(max_examples=5000, deadline=None)
    @given(text=TEXTS)
    def compare(text: str) -> None:
        assert_same_ids(text, fast, published)

    compare()
    for line in reference_file("car_train.jsonl").read_text(encoding="utf-8").splitlines()[:300]:
        assert_same_ids(line, fast, published)


def test_the_bundled_file_is_the_one_that_is_made(tmp_path: Path) -> None:
    build_fast_tokenizer(WORDS).save(str(tmp_path / "tokenizer.json"))
    made = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert made == json.loads((TINY_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))


def complete(folder: Path, *, has_code: bool = True, **config: Any) -> dict[str, Any]:
    """Complete a folder as the vendor publishes it; returns its tokenizer_config.json."""
    folder.mkdir()
    shutil.copyfile(TINY_TOKENIZER / "hy.tiktoken", folder / "hy.tiktoken")
    published = {"tokenizer_class": "HYTokenizer", "auto_map": AUTO_MAP, "eos_token": "<|eos|>"}
    published |= {"model_max_length": 1048576, "pad_token": "<|pad|>", "model_type": "gpt2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(published | config))
    if has_code:
        write_remote_code(folder)
    complete_tokenizer(folder, WORDS, SHAPE)
    return json.loads((folder / "tokenizer_config.json").read_text())


def test_it_loads_with_and_without_the_vendors_code(tmp_path: Path) -> None:
    complete(tmp_path / "out")
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    code = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(code).__name__ == "HYTokenizer" != type(fast).__name__
    assert code.mergeable_ranks[b"a"] == WORDS.encode("a")[0]  # as llama.cpp's converter asks
    text = "你好 <|eos|>\u0338 e\u0301<|extra_0|>\x00 12345"
    assert fast(text)["input_ids"] == code(text)["input_ids"]
    for one in (fast, code):
        assert (one.eos_token_id, one.pad_token_id) == (WORDS.eos_id, WORDS.pad_id)
        assert one.chat_template == CHAT_TEMPLATE
        assert one.model_max_length == 1048576
    messages = [{"role": "user", "content": "Hi"}]
    prompts = [one.apply_chat_template(messages, tokenize=False) for one in (fast, code)]
    assert prompts == ["<|startoftext|>Hi<|extra_0|>"] * 2


def test_code_that_is_not_there_is_not_named(tmp_path: Path) -> None:
    config = complete(tmp_path / "out", has_code=False)
    assert "auto_map" not in config
    AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    hub = {"AutoTokenizer": ["tencent/X--tokenization_hy.HYTokenizer", None]}
    assert complete(tmp_path / "hub", has_code=False, auto_map=hub)["auto_map"] == hub


@pytest.mark.parametrize("config", [None, '{"unk": 1}', '{"unk":', "[1]"])
def test_what_a_folder_lacks_is_added(tmp_path: Path, config: str | None) -> None:
    shutil.copyfile(TINY_TOKENIZER / "hy.tiktoken", tmp_path / "hy.tiktoken")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(config)
    complete_tokenizer(tmp_path, WORDS, SHAPE)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_token, loaded.pad_token) == ("<|eos|>", "<|pad|>")
    assert loaded.model_max_length == SHAPE.context_length
    assert len(loaded) == WORDS.vocab_size


def test_a_template_of_the_users_own_is_kept_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = complete(tmp_path / "out", chat_template="{{ messages }}")
    assert "the chat template of the base is exported as it is" in caplog.text
    assert config["chat_template"] == "{{ messages }}"
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_the_published_template_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = json.loads(reference_file("tokenizer_config.json").read_text(encoding="utf-8"))
    with caplog.at_level(logging.WARNING):
        config = complete(tmp_path / "out", chat_template=published["chat_template"])
    assert "chat_template" not in config
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert not caplog.text
