"""A vocabulary of byte-pair ranks as llama.cpp's converter asks for it; copied beside a model.

The converter loads the model's tokenizer as remote code and takes ranks and special tokens from it,
under the names that the vendor's class gives them. A tokenizer.json holds no ranks.
"""

import base64
import json
from pathlib import Path
from typing import Any

import tiktoken

DESCRIPTION = "ranks.json"


class RanksTokenizer:
    """What the converter reads of a tokenizer."""

    def __init__(self, folder: Path) -> None:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        lines = (folder / description["rank_file"]).read_bytes().splitlines()
        ranks = [base64.b64decode(line.split()[0]) for line in lines]
        self.mergeable_ranks = {token: rank for rank, token in enumerate(ranks)}
        self.special_tokens: dict[str, int] = description["special_tokens"]
        self.vocab_size: int = description["vocab_size"]
        self._encoding = tiktoken.Encoding(
            "ranks",
            pat_str=description["split_pattern"],
            mergeable_ranks=self.mergeable_ranks,
            special_tokens={},
        )

    @classmethod
    def from_pretrained(cls, folder: str, *_: Any, **__: Any) -> "RanksTokenizer":
        """As Transformers calls it."""
        return cls(Path(folder))

    @classmethod
    def register_for_auto_class(cls, *_: Any) -> None:
        """As Transformers calls it; nothing is saved again."""

    def encode(self, text: str) -> list[int]:
        """Tokens of ordinary text."""
        return self._encoding.encode_ordinary(text)
