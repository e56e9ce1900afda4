"""What `train_data_file` names: files and folders, each with a weight, and what a folder holds.

Every entry of a folder is read or named: what looks like dialogues and cannot be read is an error,
and what is beside them (a README, a licence) is noted.
"""

import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hunyuan_train.data.findings import Finding, PolicySet, Problem
from hunyuan_train.data.reading.compression import DAMAGED, CompressionError, decompress
from hunyuan_train.data.reading.contents import (
    COMPRESSED,
    HEAD_BYTES,
    Content,
    describe_foreign,
    find_content,
)
from hunyuan_train.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
WRITTEN_SUFFIXES = (".jsonl", ".json", ".ndjson")  # of what we write

MAX_WEIGHT = 1000.0

_WEIGHT = re.compile(r"(?P<path>.+):(?P<weight>[^:/]*)")
_SPLIT = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")  # how the Hub names the files of a split
_NO_RECORDS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}
# What lies beside data everywhere, and holds none.
_BESIDE = re.compile(
    r"\.git.*|\.cache|\.DS_Store|__MACOSX|readme.*|licen[cs]e.*|copying.*|notice.*|changelog.*"
    r"|citation.*|.*\.(md|rst|py|ipynb|sh|ya?ml|toml|cff|bib|png|jpe?g|gif|svg|css|html?|jinja2?)",
    re.IGNORECASE,
)
_CONTENTS: dict[str, tuple[Content, ...]] = {
    ".gz": ("gzip",),
    ".zst": ("zstandard",),
    ".zstd": ("zstandard",),
    ".bz2": ("bzip2",),
    ".xz": ("xz",),
    ".parquet": ("parquet",),
    ".arrow": ("arrow", "arrow file"),
    ".feather": ("arrow file",),
}


_JSON_START = re.compile(rb'\s*(\[|\{\s*["}])')  # and not that of a template, which is {% or {{
_RENAME = "give it an ending that is read, such as .jsonl"

# How programs name what they have not finished to write.
_UNFINISHED = {".part", ".partial", ".crdownload", ".incomplete", ".download", ".tmp", ".aria2"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file, and how often an epoch shows its samples."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unread:
    """An entry of a folder that is not read, and why."""

    path: Path
    problem: Problem


@dataclass(frozen=True, slots=True)
class Listing:
    """What some names stand for."""

    sources: list[Source] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


def find_sources(names: str, *, setting: str = "train_data_file") -> list[Source]:
    """The files behind `a.jsonl:2,folder,b.parquet:0.5`, in that order."""
    return list_sources(names, setting=setting).sources


def list_sources(names: str, *, setting: str = "train_data_file") -> Listing:
    """The same, with the entries of folders that are not read.

    Args:
        names: comma-separated files and folders, each with an optional weight.
        setting: what the user calls them, for the message.

    Raises:
        DataError: one of them is not there, or holds nothing that can be read.
    """
    if names.strip() and Path(names).exists():  # a path may hold a comma or a colon
        words = [names]
    else:
        words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise DataError(f"{setting} is empty; name a file or folder of dialogues")
    listing = Listing()
    for word in words:
        _expand(*_split_weight(word), setting, listing)
    return listing


def report_unread(unread: Sequence[Unread], policies: PolicySet) -> list[Finding]:
    """What is found about the entries of folders that are not read."""
    return [
        Finding(
            str(one.path),
            1,
            one.problem.kind,
            policies.decide(one.problem),
            one.problem.field,
            one.problem.reason,
            one.problem.fix,
        )
        for one in unread
    ]


def _split_weight(word: str) -> tuple[Path, float]:
    match = _WEIGHT.fullmatch(word)
    if match is None or Path(word).exists():
        return Path(word), 1.0
    try:
        weight = float(match["weight"])
    except ValueError as error:
        reason = f"the weight in '{word}' is not a number; write it like a.jsonl:2"
        raise DataError(reason) from error
    if not 0 < weight <= MAX_WEIGHT:
        raise DataError(
            f"the weight in '{word}' must be above 0 and up to {MAX_WEIGHT:g}; leave a file out "
            "rather than give it 0"
        )
    return Path(match["path"]), weight


def _expand(path: Path, weight: float, setting: str, listing: Listing) -> None:
    if not path.is_dir():
        _check_file(path, setting)
        listing.sources.append(Source(path, weight))
        return
    if (path / "dataset_dict.json").exists():
        _refuse_dataset_dict(path)
    if (path / "state.json").exists():  # written by datasets.save_to_disk, beside its caches
        listing.sources.extend(Source(file, weight) for file in _list_saved(path, setting))
        return
    files = []
    for entry in _walk(path):
        if problem := _judge_entry(entry):
            listing.unread.append(Unread(entry, problem))
        else:
            files.append(entry)
    if not files:
        found = ", ".join(str(one.path.relative_to(path)) for one in listing.unread[:3])
        raise DataError(
            f"{path} holds no file of dialogues (.jsonl, .json, .csv, .parquet and more)"
            + (f"; it has {found}" if found else "")
            + f"; {setting} takes files and folders with such files"
        )
    _refuse_several_splits(path, files)
    listing.sources.extend(Source(file, weight) for file in files)


def _refuse_dataset_dict(path: Path) -> None:
    splits = sorted(child.name for child in path.iterdir() if child.is_dir())
    raise DataError(
        f"{path} holds the splits {', '.join(splits)}; name one, like {path / splits[0]}"
        if splits
        else f"{path} holds a dataset_dict.json and not one split; copy the data set again"
    )


def _list_saved(folder: Path, setting: str) -> list[Path]:
    """The files of a data set that was saved, as its own list has them."""
    path = folder / "state.json"
    try:
        names = [str(one["filename"]) for one in json.loads(path.read_bytes())["_data_files"]]
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it must name files of this folder")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not the list of files that datasets.save_to_disk writes ({error!r}); save "
            "the data set again, or name its files"
        ) from error
    for name in names:
        _check_file(folder / name, setting)
    return [folder / name for name in names]


def _check_file(path: Path, setting: str) -> None:
    """Refuse what is named and cannot be read."""
    if path.is_file():
        if is_data_file(path):
            return
        what, fix = _look_inside(path)
        known = " ".join((*TEXT_SUFFIXES, *TABLE_SUFFIXES, *COMPRESSED_SUFFIXES))
        raise DataError(
            f"{path} has no ending that is read as data"
            + (f" (it is {what}; {fix})" if what else "")
            + f"; the endings are {known}"
        )
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path} is a link to {os.readlink(path)}, which does not exist; {setting} takes files "
            "and folders"
        )
    if path.exists():
        raise DataError(
            f"{path} is {_name_special(path)} and no file; {setting} takes files and folders"
        )
    if str(path).startswith(("http:/", "https:/")):  # a path has one slash of the two
        address = str(path).replace(":/", "://", 1)
        raise DataError(
            f"{setting} is {address}, an address on the web; download it first, and give the file"
        )
    if any(sign in str(path) for sign in "*?["):
        raise DataError(
            f"{setting} is {path}, which is no file; patterns are not expanded: give the folder, "
            "all of whose files are read, or its files by name"
        )
    raise DataError(f"{path} does not exist; {setting} takes files and folders")


def _walk(folder: Path) -> Iterator[Path]:
    """Every entry of a folder but its folders, in the order of their paths; links are followed."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_closed):
        here = Path(name).stat()
        if (here.st_dev, here.st_ino) in seen:  # by a link, which may lead to where we came from
            folders.clear()
            found.append(Path(name))
            continue
        seen.add((here.st_dev, here.st_ino))
        hidden = [one for one in folders if _is_beside(one)]
        folders[:] = [one for one in folders if one not in hidden]
        found += [Path(name) / entry for entry in (*files, *hidden)]
    return iter(sorted(found))


def _refuse_closed(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); open it, or take it out")


def _is_beside(name: str) -> bool:
    return name.startswith(".") or bool(_BESIDE.fullmatch(name))


def _judge_entry(path: Path) -> Problem | None:
    """Why an entry of a folder is not read; None where it is."""
    name = path.name
    if path.is_file() and is_data_file(path):
        return None
    if name in _NO_RECORDS or _is_beside(name):
        return Problem("passed_over", name, "its name says that it holds no dialogues", "not read")
    if path.is_symlink() and not path.exists():
        reason = f"a link to {os.readlink(path)}, which does not exist"
        return Problem("unread_entry", name, reason, "fix or remove it")
    if path.is_dir():
        return Problem("passed_over", name, "the same folder is read by another name", "not read")
    if not path.is_file():
        reason = f"{_name_special(path)} and no file"
        return Problem("unread_entry", name, reason, "take it out of the folder")
    what, fix = _look_inside(path)
    if not what and path.suffix.lower() not in _UNFINISHED:
        return Problem("passed_over", name, "its name has no ending that is read", "not read")
    reason = "a file that its program has not finished, by its ending"
    if what:
        reason = f"it is {what}, and its ending is not one that is read"
    return Problem("unread_entry", name, reason, f"{fix}, or take it out of the folder")


def _name_special(path: Path) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(path.stat().st_mode), "a device")


def _look_inside(path: Path) -> tuple[str, str]:
    """What a file holds, "" for text of another kind than JSON; and what to do with it."""
    try:
        head, content = _read_head(path)
    except OSError as error:
        return f"closed to us ({error.strerror})", "open it"
    if foreign := describe_foreign(head):
        what, fix = foreign
        return f"{what}, inside of {content}" if content in COMPRESSED else what, fix
    if content == "text":
        return "JSON" if _JSON_START.match(head) else "", _RENAME
    return content, _RENAME


def _read_head(path: Path) -> tuple[bytes, Content]:
    """The first bytes of a file, of what is inside where it is compressed, and what it holds."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        content = find_content(head)
        if content in COMPRESSED:
            file.seek(0)
            with suppress(CompressionError, EOFError, zlib.error, *DAMAGED):
                head = next(decompress(file, content, HEAD_BYTES), b"")
    return head, content


def _refuse_several_splits(folder: Path, files: list[Path]) -> None:
    """A folder as the Hub holds it may have test data beside training data."""
    names = {match["split"]: file for file in files if (match := _SPLIT.match(file.name))}
    if len(names) > 1:
        raise DataError(
            f"{folder} holds the splits {', '.join(sorted(names))} side by side; name the files of "
            f"one, like {min(names.values())}"
        )


def is_data_file(path: Path) -> bool:
    """Whether a file is read as data, by its name."""
    return _has_ending(path, (*TEXT_SUFFIXES, *TABLE_SUFFIXES))


def is_written_file(path: Path) -> bool:
    """Whether a file that we write would be read again, by its name."""
    suffix = path.suffix.lower()
    can_compress = suffix not in COMPRESSED_SUFFIXES or suffix in (".gz", ".zst")
    return can_compress and _has_ending(path, WRITTEN_SUFFIXES)


def says_content(path: Path, content: Content) -> bool:
    """Whether the name of a file promises this content."""
    return content in _CONTENTS.get(path.suffix.lower(), ("text",))


def _has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    if path.name in _NO_RECORDS or path.name.startswith("."):
        return False
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return bool(suffixes) and suffixes[-1] in endings
