"""What a file holds, by its first bytes: its name may say another thing, or nothing."""

import re
from typing import Literal

HEAD_BYTES = 512  # of a file that is looked at

Content = Literal["text", "gzip", "zstandard", "bzip2", "xz", "parquet", "arrow file", "arrow"]

COMPRESSED: tuple[Content, ...] = ("gzip", "zstandard", "bzip2", "xz")
TABLES: tuple[Content, ...] = ("parquet", "arrow file", "arrow")

_READ: tuple[tuple[re.Pattern[bytes], Content], ...] = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstandard"),  # or skippable frame
    (re.compile(rb"BZh[1-9](?:\x31\x41\x59|\x17\x72\x45)"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    (re.compile(rb"PAR1"), "parquet"),
    (re.compile(rb"ARROW1"), "arrow file"),
    (re.compile(rb"\xff\xff\xff\xff"), "arrow"),
)

# What is downloaded or exported in place of dialogues, and what to do about it.
_UNPACK = "unpack it and name what was in it"
_EXPORT = "export it as .jsonl or .parquet"
_DOWNLOAD = "download the file itself, such as by the link named raw or download"
_FOREIGN: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb"version https://(?:git-lfs|hawser)"),
        "a Git LFS pointer and not the file itself",
        "fetch it with `git lfs pull`, or download it from the page of the data set",
    ),
    (
        re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype|html|head|\?xml)", re.I | re.S),
        "a web page or XML",
        _DOWNLOAD,
    ),
    (
        re.compile(rb"[./\\]*(?:git)?[/\\]annex[/\\]objects[/\\]"),
        "a git-annex pointer and not the file itself",
        "fetch it with `git annex get`",
    ),
    (
        re.compile(rb"(?:[a-z]\w*:.*\n)*outs:\s*\n\s*- \w+:"),
        "a DVC pointer and not the file itself",
        "fetch it with `dvc pull`, and name the file that it points to",
    ),
    (re.compile(rb"\[InternetShortcut\]"), "a link to a web page", _DOWNLOAD),
    (
        re.compile(
            rb"\s*(?:\d{3}:? *)?(?:entry not found|(?:file |repository |page )?not found"
            rb"|invalid username or password|access (?:to|denied)|unauthori[sz]ed|forbidden"
            rb"|bad (?:gateway|request)|internal server error|service unavailable"
            rb"|too many requests|gateway time-?out)[^,\t\n]{0,200}\s*\Z",
            re.I,
        ),
        "the refusal of a server in place of the file",
        "download it again, signed in where the data set asks for it",
    ),
    (
        re.compile(rb"PK(?:\x03\x04|\x05\x06)"),
        "a zip archive or a spreadsheet",
        f"{_UNPACK}, or {_EXPORT}",
    ),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", _UNPACK),
    (re.compile(rb"Rar!\x1a\x07"), "a rar archive", _UNPACK),
    (re.compile(rb".{257}ustar", re.S), "a tar archive", _UNPACK),
    (re.compile(rb"\x04\x22\x4d\x18"), "compressed by lz4", _UNPACK),
    (re.compile(rb"\xff\x06\x00\x00sNaPpY"), "compressed by snappy", _UNPACK),
    (re.compile(rb"\x1f\x9d|\x1f\xa0"), "compressed by compress", _UNPACK),
    (re.compile(rb"\x5d\x00\x00"), "compressed by lzma", _UNPACK),
    (re.compile(rb"ORC"), "an ORC table", _EXPORT),
    (re.compile(rb"Obj\x01"), "an Avro table", _EXPORT),
    (re.compile(rb"PARE"), "an encrypted parquet table", "decrypt it"),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database", _EXPORT),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file", _EXPORT),
    (
        re.compile(rb"\x80[\x02-\x05]|\([ld]p\d|[\]}]q\x00"),
        "a pickle, which is never opened: it may run code",
        _EXPORT,
    ),
    (re.compile(rb"\x93NUMPY"), "a NumPy array", _EXPORT),
    (re.compile(rb"%PDF"), "a PDF", "take the text out of it"),
    (
        re.compile(rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff"),
        "UTF-32",
        "convert it with iconv -f UTF-32 -t UTF-8",
    ),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"),
)


def find_content(head: bytes) -> Content:
    """What a file holds; whatever has no mark of its own passes for text."""
    return next((content for mark, content in _READ if mark.match(head)), "text")


def describe_foreign(head: bytes) -> tuple[str, str] | None:
    """What a file is that cannot be read, and the remedy; None where nothing says so."""
    found = ((what, fix) for mark, what, fix in _FOREIGN if mark.match(head))
    return next(found, None)
