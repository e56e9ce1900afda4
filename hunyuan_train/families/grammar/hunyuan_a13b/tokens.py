"""The vocabulary of Hunyuan-A13B: names of its control tokens, and its rank file.

`hy.tiktoken` holds ranks alone. The vendor's code adds the special tokens behind them; that code is
not run, so their names stand here.
"""

import base64
import binascii
import hashlib
import re
from pathlib import Path

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.hunyuan_a13b.unread_files import describe_unread
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import Tokenizer, build_tokenizer
from hunyuan_train.json_file import read_bytes

RANK_FILE = "hy.tiktoken"

# The pre-tokenizer of the model: contractions, words, single digits, punctuation, newlines, blanks.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
)
SPLIT_PATTERN = rf"{_PIECES}|\s+(?!\S)|\s+"  # as it is published
# The same pieces, of words and code in two thirds of the time: tiktoken's matcher tries the
# alternatives of a pattern that looks ahead one by one, and those of a group without that at once.
# Of a run of blanks that nothing before has taken, both patterns take all where the text ends
# behind it, else all but the last, or the only one.
QUICK_PATTERN = rf"(?:{_PIECES}|\s+\z)|\s+(?=\s)|\s"

TEXT_END = "<|endoftext|>"
START = "<|startoftext|>"  # opens a dialogue and every later user turn
SYSTEM_END = "<|extra_4|>"
USER_END = "<|extra_0|>"  # closes a user or tool message: the model speaks next
EOS = "<|eos|>"
PAD = "<|pad|>"
ANSWER_STOP = "<|extra_5|>"  # the second id on which the served model stops

# Special tokens follow the ranks in this order.
SPECIAL_TOKENS = (
    TEXT_END,
    START,
    "<|bos|>",
    EOS,
    PAD,
    *(f"<|extra_{number}|>" for number in range(205)),
)

_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))


def find_control_token(text: str) -> str:
    """The first special token that a text spells; "" where it spells none."""
    match = _SPECIAL.search(text) if "<|" in text else None
    return match[0] if match else ""


def read_tokenizer(folder: Path, grammar: Grammar) -> Tokenizer:
    """Read `hy.tiktoken` from a model or tokenizer folder.

    Raises:
        DataError: it is not there, or damaged, or the files beside it say so.
    """
    path = folder / RANK_FILE
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"tokenizer folder {folder} has no readable {RANK_FILE} ({reason}); "
            f"give the folder of the model or of the tokenizer"
        ) from error
    ranks = _parse_ranks(content, path)
    special_ids = {token: len(ranks) + number for number, token in enumerate(SPECIAL_TOKENS)}
    return build_tokenizer(
        folder,
        grammar,
        content_hash=hashlib.sha256(content).hexdigest(),
        split_pattern=SPLIT_PATTERN,
        quick_pattern=QUICK_PATTERN,
        ranks=ranks,
        special_tokens=SPECIAL_TOKENS,
        remarks=describe_unread(folder, special_ids, grammar),
    )


def _parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Ranks of a `base64 rank` file, checked: in order, no gap, no double, every byte there."""
    words = content.split()
    try:
        tokens = [binascii.a2b_base64(word, strict_mode=True) for word in words[::2]]
    except binascii.Error:
        tokens = []
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # At once, in half the time that a line after the other takes.
    if words[1::2] != [b"%d" % rank for rank in range(len(ranks))]:
        ranks = _parse_lines(content, path)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of the 256 single bytes, so some text has no tokens; "
            f"the file is cut short, copy it again"
        )
    return ranks


def _parse_lines(content: bytes, path: Path) -> dict[bytes, int]:
    """The ranks of each line after the other, to name the first one that is damaged."""
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
    return ranks
