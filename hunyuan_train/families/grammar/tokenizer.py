"""Token ids of one vocabulary, read without running any code that comes with it.

Text is always ordinary text here: a special string typed by a user becomes plain tokens. Control
tokens enter only through `encode_marked`, where one private mark character stands for each.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import tiktoken

from hunyuan_train.families.grammar.interface import Grammar

# Noncharacters of Unicode: no text means anything by them, and each is 4 bytes of UTF-8.
_NONCHARACTERS = [
    chr(plane | end) for plane in range(0x100000, 0, -0x10000) for end in (0xFFFE, 0xFFFF)
]
MARK_NUM_BYTES = 4
UNUSED = "<unused "  # begins our name for an id between those of special tokens


class Encoding(Protocol):
    """What turns text into the tokens of one vocabulary."""

    def encode(
        self, text: str, *, allowed_special: set[str], disallowed_special: tuple[str, ...]
    ) -> list[int]:
        """Tokens of ordinary text."""

    def encode_to_numpy(
        self, text: str, *, allowed_special: Literal["all"], disallowed_special: tuple[str, ...]
    ) -> npt.NDArray[np.uint32]:
        """Tokens of text whose marks stand for control tokens: [tokens]."""

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token that is no control token."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Token ids of one vocabulary: N byte-pair ranks, then the special tokens."""

    folder: Path
    content_hash: str  # of the file that it was read from
    grammar: Grammar  # in which the model that knows these tokens writes
    encoding: Encoding
    split_pattern: str  # cuts text before ranks merge its bytes; "" where tokenizer.json does
    num_ranks: int
    special_tokens: tuple[str, ...]  # by name, in the order of their ids
    marks: Mapping[str, str]  # the character that stands for each control token in marked text
    token_num_bytes: npt.NDArray[np.int64]  # [vocab], length of each token; marks count 4
    remarks: tuple[str, ...] = ()  # about what its folder holds and is not read
    # Ids of tokens that users have added (`new_tokens.py`); they are the last special ones by name.
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    num_added: int = 0  # of these, those that this run adds
    added_from: Path | None = None  # the file that it takes them from
    extends: str = ""  # content hash of the tokenizer that it adds them to

    @property
    def vocab_size(self) -> int:
        """Ranks and special tokens together."""
        return self.num_ranks + len(self.special_tokens)

    @property
    def named_ids(self) -> set[int]:
        """The ids of special tokens that its folder gives a name."""
        names = enumerate(self.special_tokens, start=self.num_ranks)
        return {number for number, name in names if not name.startswith(UNUSED)}

    def special_id(self, token: str) -> int:
        """The id of a special token given by its name."""
        return self.num_ranks + self.special_tokens.index(token)

    @property
    def eos_id(self) -> int:
        """Closes an assistant message."""
        return self.special_id(self.grammar.controls.end)

    @property
    def pad_id(self) -> int:
        """Fills; never a label."""
        return self.special_id(self.grammar.controls.pad)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids on which generation ends, as the model's own generation config has them."""
        return tuple(self.special_id(token) for token in self.grammar.controls.stops)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that a config.json may name as the end of a text."""
        return tuple(self.special_id(token) for token in self.grammar.controls.ends)

    def encode(self, text: str) -> list[int]:
        """Tokens of ordinary text in NFC; special strings stay text, lone surrogates U+FFFD."""
        text = to_nfc(replace_surrogates(text))
        # Not encode_ordinary: that one turns a regex failure into a panic nothing can catch.
        return self.encoding.encode(text, allowed_special=set(), disallowed_special=())

    def encode_marked(self, text: str) -> npt.NDArray[np.uint32]:
        """Tokens of text in NFC whose marks stand for control tokens: [tokens], uint32."""
        return self.encoding.encode_to_numpy(text, allowed_special="all", disallowed_special=())

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, control tokens spelled out; broken UTF-8 becomes U+FFFD.

        An id that is no token, such as that of a model's padded row, has no text.
        """
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; a control token gives its name.

        None for an id behind the last: many models have more rows than their tokenizer has tokens,
        so that the number divides well, and an untrained model may answer with one of these.
        """
        if token >= self.vocab_size:
            return b""
        if token >= self.num_ranks:
            return self.special_tokens[token - self.num_ranks].encode()
        return self.encoding.decode_single_token_bytes(token)


def build_tokenizer(
    folder: Path,
    grammar: Grammar,
    *,
    content_hash: str,
    split_pattern: str,
    quick_pattern: str,
    ranks: Mapping[bytes, int],
    special_tokens: tuple[str, ...],
    remarks: tuple[str, ...] = (),
) -> Tokenizer:
    """A tokenizer of byte-pair ranks 0 to N-1, its special tokens behind them.

    Text is cut by `quick_pattern`, to the same pieces as by `split_pattern`, which others are told.
    """
    marks = choose_marks(grammar.controls.written)
    encoding = tiktoken.Encoding(
        grammar.name,
        pat_str=quick_pattern,
        mergeable_ranks=dict(ranks),
        special_tokens={
            mark: len(ranks) + special_tokens.index(token) for token, mark in marks.items()
        },
    )
    num_bytes = np.full(len(ranks) + len(special_tokens), MARK_NUM_BYTES, dtype=np.int64)
    num_bytes[: len(ranks)] = [len(token) for token in ranks]
    return Tokenizer(
        folder=folder,
        content_hash=content_hash,
        grammar=grammar,
        encoding=encoding,
        split_pattern=split_pattern,
        num_ranks=len(ranks),
        special_tokens=special_tokens,
        marks=marks,
        token_num_bytes=num_bytes,
        remarks=remarks,
    )


def choose_marks(written: tuple[str, ...]) -> dict[str, str]:
    """A private character for each control token that renderings hold."""
    return dict(zip(written, _NONCHARACTERS[: len(written)], strict=True))


def to_nfc(text: str) -> str:
    """NFC as the model's tokenizer applies it before anything else."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, as U+FFFD; pairs joined to their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
