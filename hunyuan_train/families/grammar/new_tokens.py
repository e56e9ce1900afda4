"""Tokens that a user adds to a vocabulary: words of text, each from then on a token of its own.

Unlike markers they match in text of data, wherever they stand in it, the longest first. A run
takes them from a file (`--add_tokens`). A model that has learned them keeps them in a file of its
own beside tokenizer.json, which alone tells its markers and its words apart.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.tokenizer import UNUSED, Encoding, Tokenizer, to_nfc
from hunyuan_train.json_file import read_bytes, read_json_object
from hunyuan_train.plain_text import make_plain_name

FILE = "tokenizer_new_tokens.json"  # ids by token; exports and merges copy tokenizer*
MOST = 2**16  # tokens of a file


@dataclass(frozen=True, slots=True)
class WithNewTokens:
    """Encodes as another vocabulary does, but for the new tokens."""

    encoding: Encoding
    ids: Mapping[str, int]
    pattern: re.Pattern[str]

    @classmethod
    def extend(cls, encoding: Encoding, ids: Mapping[str, int]) -> "WithNewTokens":
        """Of several that begin alike the longest counts, as in `tokenizers`."""
        longest_first = sorted(ids, key=len, reverse=True)
        return cls(encoding, ids, re.compile(f"({'|'.join(map(re.escape, longest_first))})"))

    def encode(
        self, text: str, *, allowed_special: set[str], disallowed_special: tuple[str, ...]
    ) -> list[int]:
        """Tokens of ordinary text."""
        ids: list[int] = []
        for index, part in enumerate(self.pattern.split(text)):
            if index % 2:
                ids.append(self.ids[part])
            elif part:
                ids += self.encoding.encode(
                    part, allowed_special=allowed_special, disallowed_special=disallowed_special
                )
        return ids

    def encode_to_numpy(
        self, text: str, *, allowed_special: Literal["all"], disallowed_special: tuple[str, ...]
    ) -> npt.NDArray[np.uint32]:
        """Tokens of text whose marks stand for control tokens."""
        found = [np.empty(0, np.uint32)]
        for index, part in enumerate(self.pattern.split(text)):
            if index % 2:
                found.append(np.array([self.ids[part]], np.uint32))
            elif part:
                found.append(
                    self.encoding.encode_to_numpy(
                        part, allowed_special=allowed_special, disallowed_special=disallowed_special
                    )
                )
        return np.concatenate(found)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token that is none of the new ones."""
        return self.encoding.decode_single_token_bytes(token)


def read_stored(folder: Path) -> dict[str, Any]:
    """The ids of the tokens that a model has learned besides, by token; {} where there are none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / FILE
    try:
        return read_json_object(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be used ({error}); copy it again") from error


def add_stored(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer with the new tokens that a model folder keeps, if any.

    Raises:
        DataError: the file is damaged, or of another vocabulary.
    """
    ids = read_stored(folder)
    ids = {token: one for token, one in ids.items() if tokenizer.new_tokens.get(token) != one}
    if not ids:
        return tokenizer
    # tokenizer.json of an export lists them behind its markers, a file of ranks knows none of them.
    known = set(tokenizer.special_tokens[-len(ids) :])
    first = tokenizer.vocab_size - (len(ids) if known == ids.keys() else 0)
    if list(ids.values()) != list(range(first, first + len(ids))):
        raise DataError(
            f"{folder / FILE} does not number {len(ids)} tokens from {first} on, where the "
            f"vocabulary of {folder} ends; copy both from one model"
        )
    return extend(tokenizer, tuple(ids), first=first)


def add_from_file(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """The tokenizer with the tokens of a user's file, one a line, behind all others.

    Raises:
        DataError: no token there, one that is there already or twice, or one that no text holds.
    """
    words = read_words(path)
    if has_gaps(tokenizer):
        raise DataError(
            f"add_tokens is {path}, and the vocabulary in {tokenizer.folder} leaves ids out, so "
            "that clients would give new tokens other ids than training does; give the tokenizer "
            "that was published with the model"
        )
    for number, word in words.items():
        if reason := _find_fault(tokenizer, word):
            raise DataError(
                f"add_tokens is {path}, whose line {number} is {make_plain_name(word)!r}: {reason}"
            )
    twice = {word for word in words.values() if list(words.values()).count(word) > 1}
    if twice:
        raise DataError(
            f"add_tokens is {path}, which has {make_plain_name(min(twice))!r} on several lines; "
            "keep one"
        )
    extended = extend(tokenizer, tuple(words.values()), first=tokenizer.vocab_size)
    return replace(extended, num_added=len(words), added_from=path, extends=tokenizer.content_hash)


def read_words(path: Path) -> dict[int, str]:
    """The tokens of a file by line: all of a line but blanks at its ends; empty lines say nothing.

    Raises:
        DataError: it cannot be read, or holds none or too many.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"add_tokens is {path}, which cannot be read ({reason}); give a text file in UTF-8 "
            "with one token a line"
        ) from error
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    words = {number: line.strip() for number, line in lines if line.strip()}
    if not 0 < len(words) <= MOST:
        raise DataError(
            f"add_tokens is {path}, which holds {len(words)} tokens; write 1 to {MOST}, one a "
            "line, or leave add_tokens out"
        )
    return words


def has_gaps(tokenizer: Tokenizer) -> bool:
    """Whether some id below the last has no token."""
    names = tokenizer.special_tokens
    ranks = map(tokenizer.encoding.decode_single_token_bytes, range(tokenizer.num_ranks))
    return any(name.startswith(UNUSED) for name in names) or not all(ranks)


def _find_fault(tokenizer: Tokenizer, word: str) -> str:
    """Why a word cannot become a token; "" where it can."""
    if word in tokenizer.special_tokens or tokenizer.grammar.controls.find(word):
        return "the vocabulary has it as a marker, which text never becomes; take another spelling"
    if len(tokenizer.encode(word)) == 1:
        return "the vocabulary has it as a token already; leave it out"
    if word != to_nfc(word):
        return "it is not in NFC, into which all text is brought first; write it so"
    if any(ord(one) & 0xFFFE == 0xFFFE for one in word) or "\r" in word:
        return "it holds characters that no text holds; leave them out"
    return ""


def extend(tokenizer: Tokenizer, words: tuple[str, ...], *, first: int) -> Tokenizer:
    """A tokenizer with new tokens numbered from `first` on; it may list them already.

    Args:
        tokenizer: of the vocabulary.
        words: in the order of their ids.
        first: where they begin, which no token of the vocabulary lies behind.
    """
    ids = {word: first + index for index, word in enumerate(words)}
    new_tokens = {**tokenizer.new_tokens, **ids}
    digest = hashlib.sha256(json.dumps([tokenizer.content_hash, new_tokens]).encode())
    sizes = [len(word.encode()) for word in words]
    return replace(
        tokenizer,
        content_hash=digest.hexdigest(),
        encoding=WithNewTokens.extend(plain_encoding(tokenizer), new_tokens),
        special_tokens=(*tokenizer.special_tokens[: first - tokenizer.num_ranks], *words),
        token_num_bytes=np.array([*tokenizer.token_num_bytes[:first], *sizes], dtype=np.int64),
        new_tokens=new_tokens,
    )


def plain_encoding(tokenizer: Tokenizer) -> Encoding:
    """That of the vocabulary as published, which knows no new token."""
    encoding = tokenizer.encoding
    return encoding.encoding if isinstance(encoding, WithNewTokens) else encoding
