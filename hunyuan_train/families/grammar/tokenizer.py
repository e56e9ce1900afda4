"""The model's tokenizer, read from its rank file without running any code that comes with it.

Text is always ordinary text here: a special string typed by a user becomes plain tokens. Control
tokens enter only through `encode_marked`, where one private mark character stands for each.
"""

import base64
import binascii
import functools
import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from hunyuan_train.errors import DataError

RANK_FILE = "hy.tiktoken"

# The pre-tokenizer of the model: contractions, words, single digits, punctuation, newlines, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

START = "<|startoftext|>"
SYSTEM_END = "<|extra_4|>"
USER_END = "<|extra_0|>"
EOS = "<|eos|>"
PAD = "<|pad|>"
ANSWER_STOP = "<|extra_5|>"  # the second id on which the served model stops

# Special tokens follow the ranks in this order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    START,
    "<|bos|>",
    EOS,
    PAD,
    *(f"<|extra_{number}|>" for number in range(205)),
)

# Noncharacters of Unicode: no text means anything by them, and each is 4 bytes of UTF-8.
MARKS = {
    START: "\U0010fffe",
    SYSTEM_END: "\U0010ffff",
    USER_END: "\U000ffffe",
    EOS: "\U000fffff",
}
MARK_NUM_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Token ids of one vocabulary: N byte-pair ranks, then the special tokens."""

    folder: Path
    content_hash: str  # of the rank file
    encoding: tiktoken.Encoding
    num_ranks: int
    token_num_bytes: npt.NDArray[np.int64]  # [vocab], length of each token; marks count 4

    @property
    def vocab_size(self) -> int:
        """Ranks and special tokens together."""
        return self.num_ranks + len(SPECIAL_TOKENS)

    def special_id(self, token: str) -> int:
        """The id of a special token given by its name."""
        return self.num_ranks + SPECIAL_TOKENS.index(token)

    @property
    def start_id(self) -> int:
        """Opens a dialogue and every later user turn."""
        return self.special_id(START)

    @property
    def system_end_id(self) -> int:
        """Closes the system prompt."""
        return self.special_id(SYSTEM_END)

    @property
    def user_end_id(self) -> int:
        """Closes a user or tool message: the model speaks next."""
        return self.special_id(USER_END)

    @property
    def eos_id(self) -> int:
        """Closes an assistant message."""
        return self.special_id(EOS)

    @property
    def pad_id(self) -> int:
        """Fills; never a label."""
        return self.special_id(PAD)

    @property
    def stop_ids(self) -> tuple[int, int]:
        """The ids on which generation ends, as the model's own generation config has them."""
        return self.eos_id, self.special_id(ANSWER_STOP)

    def encode(self, text: str) -> list[int]:
        """Tokens of ordinary text in NFC; special strings stay text, lone surrogates U+FFFD."""
        text = to_nfc(replace_surrogates(text))
        # Not encode_ordinary: that one turns a regex failure into a panic nothing can catch.
        return self.encoding.encode(text, allowed_special=set(), disallowed_special=())

    def encode_marked(self, text: str) -> npt.NDArray[np.uint32]:
        """Tokens of text that is already NFC and whose marks stand for control tokens."""
        return self.encoding.encode_to_numpy(text, allowed_special="all", disallowed_special=())

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, control tokens spelled out; broken UTF-8 becomes U+FFFD."""
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; a control token gives its name."""
        if token >= self.num_ranks:
            return SPECIAL_TOKENS[token - self.num_ranks].encode()
        return self.encoding.decode_single_token_bytes(token)


def to_nfc(text: str) -> str:
    """NFC as the model's tokenizer applies it before anything else."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, as U+FFFD; pairs joined to their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@functools.cache
def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `hy.tiktoken` from a model or tokenizer folder."""
    path = folder / RANK_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer folder {folder} has no readable {RANK_FILE} ({error.strerror}); "
            f"give the folder of the model or of the tokenizer"
        ) from error
    ranks = _parse_ranks(content, path)
    special_ids = {name: len(ranks) + index for index, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding(
        "hunyuan",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={mark: special_ids[name] for name, mark in MARKS.items()},
    )
    num_bytes = np.full(len(ranks) + len(SPECIAL_TOKENS), MARK_NUM_BYTES, dtype=np.int64)
    num_bytes[: len(ranks)] = [len(token) for token in ranks]
    return Tokenizer(
        folder=folder,
        content_hash=hashlib.sha256(content).hexdigest(),
        encoding=encoding,
        num_ranks=len(ranks),
        token_num_bytes=num_bytes,
    )


def _parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Ranks of a `base64 rank` file, checked: in order, no gap, no double, every byte there."""
    ranks: dict[bytes, int] = {}
    for line_number, line in enumerate(content.splitlines(), start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            is_in_order = int(rank) == len(ranks) and token not in ranks
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{path}:{line_number} is not 'base64 rank'; copy it again") from error
        if not is_in_order:
            raise DataError(
                f"{path}:{line_number} has rank {rank.decode()} where {len(ranks)} new tokens came "
                f"before; the file is damaged, copy it again"
            )
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of the 256 single bytes, so some text has no tokens; "
            f"the file is cut short, copy it again"
        )
    return ranks
