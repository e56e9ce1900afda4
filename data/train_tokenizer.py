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
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.export.served_tokenizer import CHARACTER, build_fast_tokenizer, split_text
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import (
    EOS,
    PAD,
    RANK_FILE,
    SPLIT_PATTERN,
    read_tokenizer,
)

HERE = Path(__file__).parent
CORPUS = HERE / "tiny_train.jsonl"
FOLDER = HERE / "tokenizer_tiny"
NUM_RANKS = 2000
MAX_TOKEN_BYTES = 16  # no phrase of the corpus becomes one token
MAX_LENGTH = 32768

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
    words = read_tokenizer(FOLDER, HUNYUAN_A13B)
    build_fast_tokenizer(words).save(str(FOLDER / "tokenizer.json"))


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
    tokenizer.pre_tokenizer = split_text(SPLIT_PATTERN)
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


if __name__ == "__main__":
    main()
