"""Train the tiny tokenizer on the bundled dialogues: `python data/train_tokenizer.py`.

It has the shape of the model's own (byte-level ranks in `hy.tiktoken`, the same pre-tokenizer, the
same special tokens behind the ranks) with 2,000 ranks instead of 128 thousand, so that a tiny model
is small and everything that works with it works with the real vocabulary. `tokenizer.json` holds
the same tokenizer for `AutoTokenizer`, which then needs no code of ours, and `chat_template.jinja`
the model's layout for plain servers.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import orjson
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import (
    EOS,
    PAD,
    RANK_FILE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
)

HERE = Path(__file__).parent
CORPUS = HERE / "tiny_train.jsonl"
FOLDER = HERE / "tokenizer_tiny"
NUM_RANKS = 2000
MAX_TOKEN_BYTES = 16  # no phrase of the corpus becomes one token
MAX_LENGTH = 32768

# Byte-level BPE writes every byte as one printable character: itself where it is printable, else
# the next free one from 256 on, in the order of the bytes.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]
CHARACTER = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(256 + index) for index, byte in enumerate(HIDDEN)
}
BYTE = {character: byte for byte, character in CHARACTER.items()}


def main() -> None:
    """Write the folder."""
    ranks = train_ranks()
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "pad_token": PAD,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / RANK_FILE).write_text("".join(lines))
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (FOLDER / "chat_template.jinja").write_text(HUNYUAN_A13B.chat_template)
    build_fast_tokenizer(ranks).save(str(FOLDER / "tokenizer.json"))


def read_corpus() -> Iterator[str]:
    """What the model sees of each dialogue, control tokens left out."""
    for line in CORPUS.read_bytes().splitlines():
        dialogue = read_dialogue(orjson.loads(line), Reading(HUNYUAN_A13B), [])
        assert dialogue is not None, "the bundled data is in chat form"
        segments = HUNYUAN_A13B.render(dialogue, history="keep").sample(0)
        yield "".join(segment.text for segment in segments if not segment.is_special)


def train_ranks() -> dict[bytes, int]:
    """Tokens in the order of their ranks: the single bytes, then what merging them gives."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_text()
    trainer = BpeTrainer(
        vocab_size=NUM_RANKS,
        initial_alphabet=list(BYTE),
        max_token_length=MAX_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_corpus(), trainer)
    ids = tokenizer.get_vocab()
    in_order = sorted(ids, key=lambda token: ids[token])
    tokens = [bytes(BYTE[character] for character in token) for token in in_order]
    return {token: rank for rank, token in enumerate(tokens)}


def build_fast_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """A `tokenizers` tokenizer with the same ids for every text.

    Ranks merge any two neighbours that form a token, so every split of every token is a merge; and
    a word that is a token is one, however its merges would go.
    """
    splits = [
        (ranks[token], ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges = [(write_bytes(left), write_bytes(right)) for *_, left, right in sorted(splits)]
    vocabulary = {write_bytes(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_text()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def split_text() -> pre_tokenizers.PreTokenizer:
    """The model's pre-tokenizer."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write_bytes(token: bytes) -> str:
    """A token in the alphabet of byte-level BPE."""
    return "".join(CHARACTER[byte] for byte in token)


if __name__ == "__main__":
    main()
