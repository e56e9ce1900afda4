"""A vocabulary that is published as tokenizer.json: byte-level pairs, read without remote code.

Its added tokens are left out, so that text of data never becomes one: those that are no control
tokens (tags of thoughts and calls) would match in any text, even with special parsing off. They
enter through private marks, as for every grammar. Encoding is `tokenizers`' own, which alone knows
this file's pre-tokenizers and merges.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.template_files import CONFIG, has_other_template
from hunyuan_train.families.grammar.tokenizer import MARK_NUM_BYTES, UNUSED, Tokenizer, choose_marks
from hunyuan_train.json_file import read_bytes, read_json_object

FILE = "tokenizer.json"
# No UTF-8 has these bytes, so no vocabulary needs them.
NEVER_WRITTEN = {0xC0, 0xC1, *range(0xF5, 0x100)}
_SAMPLE = "Hello, world! 1234 你好世界\n\t x"


@dataclass(frozen=True, slots=True, eq=False)
class PublishedFiles:
    """What a folder says of its vocabulary."""

    folder: Path
    content_hash: str
    content: dict[str, Any]  # of tokenizer.json
    config: dict[str, Any]  # of tokenizer_config.json
    added: Mapping[str, int]  # ids of added tokens by name

    def refuse(self, reason: str) -> DataError:
        """The error for a file that cannot be used."""
        return DataError(f"{self.folder / FILE} cannot be used: {reason}; download it again")


def read_files(folder: Path) -> PublishedFiles:
    """Read a folder with tokenizer.json.

    Raises:
        DataError: it is damaged.
    """
    path = folder / FILE
    try:
        raw = read_bytes(path)
        content = json.loads(raw)
        added = {one["content"]: int(one["id"]) for one in content["added_tokens"]}
        has_config = (folder / CONFIG).exists()
        config = read_json_object(folder / CONFIG) if has_config else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be used ({error}); download it again") from error
    return PublishedFiles(folder, hashlib.sha256(raw).hexdigest(), content, config, added)


class JsonEncoding:
    """Encodes as tiktoken's class does for other vocabularies."""

    def __init__(self, files: PublishedFiles, mark_ids: Mapping[str, int]) -> None:
        bare = {**files.content, "added_tokens": [], "post_processor": None}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # the library raises nothing narrower
            raise files.refuse(str(error)) from error
        self._mark_ids = mark_ids
        self._marks = re.compile(f"([{''.join(mark_ids)}])")
        self.vocabulary = {
            token: _to_bytes(name) for name, token in self._tokenizer.get_vocab().items()
        }

    def encode(self, text: str, **_: object) -> list[int]:
        """Tokens of ordinary text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_to_numpy(self, text: str, **_: object) -> npt.NDArray[np.uint32]:
        """Tokens of text whose marks stand for control tokens."""
        parts = self._marks.split(text)
        runs = [part for part in parts[::2] if part]
        found = iter(self._tokenizer.encode_batch(runs, add_special_tokens=False))
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._mark_ids[part])
            elif part:
                ids += next(found).ids
        return np.array(ids, np.uint32)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for an id that the vocabulary leaves out."""
        return self.vocabulary.get(token, b"")


def find_missing(files: PublishedFiles) -> str:
    """The characters that the vocabulary cannot encode and would lose silently.

    Raises:
        DataError: it lacks bytes of other characters too.
    """
    vocabulary = files.content.get("model", {}).get("vocab", {})
    missing = {byte for byte, name in BYTE_NAMES.items() if name not in vocabulary}
    missing -= NEVER_WRITTEN
    if any(byte >= 0x80 for byte in missing):
        raise files.refuse(f"its vocabulary lacks {len(missing)} of the bytes that text is made of")
    return "".join(map(chr, sorted(missing)))


def build(files: PublishedFiles, grammar: Grammar) -> Tokenizer:
    """The tokenizer of a folder whose grammar has been found.

    Raises:
        DataError: its file does more to a text than to split and merge it.
    """
    normalizer = files.content.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise files.refuse(f"its normalizer {normalizer.get('type')} changes the text")
    num_ranks, end = min(files.added.values()), max(files.added.values()) + 1
    by_id = {token: name for name, token in files.added.items()}
    special_tokens = tuple(by_id.get(token, f"{UNUSED}{token}>") for token in range(num_ranks, end))
    marks = choose_marks(grammar.controls.written)
    mark_ids = {mark: files.added[name] for name, mark in marks.items()}
    encoding = JsonEncoding(files, mark_ids)
    num_bytes = np.full(end, MARK_NUM_BYTES, dtype=np.int64)
    num_bytes[:num_ranks] = [
        len(encoding.decode_single_token_bytes(token)) for token in range(num_ranks)
    ]
    ids = encoding.encode(_SAMPLE)
    if b"".join(map(encoding.decode_single_token_bytes, ids)) != _SAMPLE.encode():
        raise files.refuse("its tokens do not spell the text that they are made of")
    return Tokenizer(
        folder=files.folder,
        content_hash=files.content_hash,
        grammar=grammar,
        encoding=encoding,
        split_pattern="",
        num_ranks=num_ranks,
        special_tokens=special_tokens,
        marks=marks,
        token_num_bytes=num_bytes,
        remarks=_describe_template(files.folder, grammar),
    )


def _describe_template(folder: Path, grammar: Grammar) -> tuple[str, ...]:
    if not has_other_template(folder, grammar):
        return ()
    return (
        f"the chat template in {folder} is not read: dialogues are written in the grammar "
        f"{grammar.name} with the markers of its tokenizer",
    )


def _list_byte_names() -> dict[int, str]:
    """The character that stands for each byte in the files of byte-level vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    names = {byte: chr(byte) for byte in plain}
    return names | {byte: chr(0x100 + number) for number, byte in enumerate(others)}


BYTE_NAMES = _list_byte_names()
_BYTES = {name: byte for byte, name in BYTE_NAMES.items()}


def _to_bytes(name: str) -> bytes:
    return bytes(_BYTES[character] for character in name if character in _BYTES)
