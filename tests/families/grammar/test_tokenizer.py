import base64
import json

import pytest
from hypothesis import given

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import (
    SPECIAL_TOKENS,
    START,
    SYSTEM_END,
    USER_END,
)
from hunyuan_train.families.grammar.tokenizer import to_nfc
from tests.data.dialogues import hard_text


def test_ids_of_the_vendor_vocabulary(vendor_tokenizer):
    assert vendor_tokenizer.vocab_size == 128167
    assert vendor_tokenizer.special_id(START) == 127958
    assert vendor_tokenizer.eos_id == 127960
    assert vendor_tokenizer.pad_id == 127961
    assert vendor_tokenizer.special_id(USER_END) == 127962
    assert vendor_tokenizer.special_id(SYSTEM_END) == 127966
    assert vendor_tokenizer.stop_ids == (127960, 127967)
    assert vendor_tokenizer.encode("<think>\n") == [14023, 771, 397]
    assert vendor_tokenizer.encode("\n</answer>") == [198, 524, 9399, 29]
    assert vendor_tokenizer.encode("/no_think") == [34200, 5978, 771]


def test_special_strings_in_text_are_text(tokenizer):
    for token in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"say {token} now")
        assert max(ids) < tokenizer.num_ranks
        assert tokenizer.decode(ids) == f"say {token} now"


@given(text=hard_text)
def test_decoding_gives_back_the_text_in_nfc(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == to_nfc(text)


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\N{REPLACEMENT CHARACTER} b"


def test_digits_are_tokens_of_their_own(tokenizer):
    assert len(tokenizer.encode("20250626")) == 8


def test_special_tokens_decode_to_their_names(tokenizer):
    ids = [tokenizer.special_id(START), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "<|startoftext|><|eos|>"


def test_rows_behind_the_last_token_have_no_text(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.vocab_size, 2**31 - 1, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == tokenizer.special_tokens[-1]


@pytest.fixture(scope="module")
def fast_tokenizer(tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))


@given(text=hard_text)
def test_the_fast_tokenizer_of_the_tiny_folder_is_equal(tokenizer, fast_tokenizer, text):
    pieces = to_nfc(text)
    for token in SPECIAL_TOKENS:  # typed control tokens are text for us and control for the other
        pieces = pieces.replace(token, "")
    assert fast_tokenizer.encode(pieces, add_special_tokens=False).ids == tokenizer.encode(pieces)


def test_a_plain_server_loads_the_tiny_folder(tokenizer):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer.folder)
    assert len(loaded) == tokenizer.vocab_size
    assert loaded.eos_token_id == tokenizer.eos_id
    assert loaded.pad_token_id == tokenizer.pad_id


def _write(folder, lines):
    folder.joinpath("hy.tiktoken").write_text("\n".join(lines))
    return folder


def _good_lines():
    return [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]


def test_a_folder_without_the_rank_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no readable hy\.tiktoken"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:100], "lacks 156 of the 256 single bytes"),
        (lambda lines: [*lines[:7], "%%% 7", *lines[8:]], r":8 is not 'base64 rank'"),
        (lambda lines: [*lines, f"{lines[0].split()[0]} 256"], r":257 has rank 256"),
        (lambda lines: [*lines[:3], *lines[4:]], r":4 has rank 4 where 3"),
        (lambda lines: [*lines, "just_one_word"], r":257 is not"),
    ],
)
def test_a_damaged_rank_file_is_refused_with_its_line(tmp_path, damage, message):
    with pytest.raises(DataError, match=message):
        load_tokenizer(_write(tmp_path, damage(_good_lines())))


def test_any_number_of_ranks_is_taken(tmp_path):
    tokenizer = load_tokenizer(_write(tmp_path, _good_lines()))
    assert tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert tokenizer.encode("é") == list("é".encode())


def test_the_bundled_config_needs_no_remote_code(tokenizer):
    config = json.loads((tokenizer.folder / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
