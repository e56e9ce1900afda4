"""Which encoding a text is in that is not UTF-8, guessed so that a message can name it."""

from collections.abc import Callable

_MIN_SHARE = 0.5  # of usual characters; a wrong guess seldom has so many


def guess_encoding(raw: bytes) -> str:
    """The name of the likeliest encoding of a text that is not UTF-8."""
    if b"\0\0\0" in raw:  # two letters in a row have at most two zeros between them in UTF-16
        return "UTF-32"
    if b"\0" in raw:
        return "UTF-16"
    shares = {name: _share_usual(raw, codec, test) for name, (codec, test) in _ENCODINGS.items()}
    name = max(shares, key=lambda one: shares[one])  # the first of equals
    return name if shares[name] > _MIN_SHARE else "Latin-1 or Windows-1252"


def _share_usual(raw: bytes, codec: str, is_usual: Callable[[bytes], bool]) -> float:
    """How many of the characters beyond ASCII are in daily use, if this is the encoding."""
    try:
        letters = [letter.encode(codec) for letter in raw.decode(codec) if not letter.isascii()]
    except UnicodeError:
        return 0.0
    return sum(map(is_usual, letters)) / max(len(letters), 1)


# Each standard has the characters of daily use in rows of its own, told by the first byte. Big5 is
# last: kana of EUC-JP lie in its rows.
_ENCODINGS: dict[str, tuple[str, Callable[[bytes], bool]]] = {
    "GB18030 (Chinese)": (
        "gb18030",
        lambda one: (
            (0xA1 <= one[0] <= 0xA3 or 0xB0 <= one[0] <= 0xD7) and len(one) == 2 and one[1] >= 0xA1
        ),
    ),
    "Shift-JIS (Japanese)": (
        "cp932",
        lambda one: 0x81 <= one[0] <= 0x83 or 0x88 <= one[0] <= 0x97,
    ),
    "EUC-JP (Japanese)": (
        "euc_jp",
        lambda one: 0xA1 <= one[0] <= 0xA5 or 0xB0 <= one[0] <= 0xCF,
    ),
    "Big5 (Chinese)": ("cp950", lambda one: 0xA1 <= one[0] <= 0xC6),
}
