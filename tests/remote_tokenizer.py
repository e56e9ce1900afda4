"""A tokenizer's remote code as a vendor publishes it beside `hy.tiktoken`: ours, for tests.

Its class has the name and the public attributes that converters ask the published one for.
"""

from pathlib import Path

from hunyuan_train.families.grammar.hunyuan_a13b.tokens import SPECIAL_TOKENS, SPLIT_PATTERN

CODE = f"""
import base64, unicodedata
import tiktoken
from transformers import PreTrainedTokenizer

NAMES = {SPECIAL_TOKENS!r}


class HYTokenizer(PreTrainedTokenizer):
    vocab_files_names = {{"vocab_file": "hy.tiktoken"}}

    def __init__(self, vocab_file, **kwargs):
        lines = open(vocab_file, "rb").read().splitlines()
        tokens = [base64.b64decode(line.split()[0]) for line in lines]
        self.mergeable_ranks = {{token: rank for rank, token in enumerate(tokens)}}
        self.special_tokens = {{name: len(tokens) + place for place, name in enumerate(NAMES)}}
        self.tokenizer = tiktoken.Encoding(
            "hy",
            pat_str={SPLIT_PATTERN!r},
            mergeable_ranks=self.mergeable_ranks,
            special_tokens=self.special_tokens,
        )
        self.decoder = {{number: name for name, number in self.special_tokens.items()}}
        self.decoder |= dict(enumerate(tokens))
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.tokenizer.n_vocab

    def __len__(self):
        return self.tokenizer.n_vocab

    def get_vocab(self):
        return self.mergeable_ranks

    def _add_tokens(self, new_tokens, special_tokens=False):
        return 0

    def tokenize(self, text, **kwargs):
        text = unicodedata.normalize("NFC", text)
        return [self.decoder[one] for one in self.tokenizer.encode(text, allowed_special="all")]

    def convert_tokens_to_ids(self, tokens):
        if isinstance(tokens, (str, bytes)):
            return self.special_tokens.get(tokens, self.mergeable_ranks.get(tokens))
        return [self.convert_tokens_to_ids(one) for one in tokens]

    def _convert_id_to_token(self, index):
        return self.decoder[index]

    def _decode(self, token_ids, skip_special_tokens=False, **kwargs):
        return self.tokenizer.decode([token_ids] if isinstance(token_ids, int) else token_ids)
"""
AUTO_MAP = {"AutoTokenizer": ["tokenization_hy.HYTokenizer", None]}


def write_remote_code(folder: Path) -> None:
    """Put the code into a tokenizer's folder."""
    (folder / "tokenization_hy.py").write_text(CODE)
