"""What `train_data_file` names: files and folders, each with a weight, and what a folder holds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst")

MAX_WEIGHT = 1000.0

_WEIGHT = re.compile(r"(?P<path>.+):(?P<weight>[^:/]*)")
_SPLIT = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")  # how the Hub names the files of a split
_NO_RECORDS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file, and how often an epoch shows its samples."""

    path: Path
    weight: float = 1.0


def find_sources(names: str) -> list[Source]:
    """The files behind `a.jsonl:2,folder,b.parquet:0.5`, in that order."""
    if names.strip() and Path(names).exists():  # a path may hold a comma or a colon
        words = [names]
    else:
        words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise DataError("train_data_file is empty; name a file or folder of dialogues")
    return [source for word in words for source in _expand(*_split_weight(word))]


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


def _expand(path: Path, weight: float) -> list[Source]:
    if path.is_file():
        if not is_data_file(path):
            known = " ".join((*TEXT_SUFFIXES, *TABLE_SUFFIXES, *COMPRESSED_SUFFIXES))
            raise DataError(f"{path} has no ending that is read as data; the endings are {known}")
        return [Source(path, weight)]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; train_data_file takes files and folders")
    if (path / "dataset_dict.json").exists():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise DataError(
            f"{path} holds the splits {', '.join(splits)}; name one, like {path / splits[0]}"
        )
    if (path / "state.json").exists():  # written by datasets.save_to_disk, beside its caches
        names = json.loads((path / "state.json").read_text())["_data_files"]
        return [Source(path / name["filename"], weight) for name in names]
    files = sorted(child for child in path.rglob("*") if child.is_file() and is_data_file(child))
    if not files:
        raise DataError(f"{path} holds no file of dialogues (.jsonl, .json, .parquet and more)")
    _refuse_several_splits(path, files)
    return [Source(file, weight) for file in files]


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
    return is_text_file(path) or _has_ending(path, TABLE_SUFFIXES)


def is_text_file(path: Path) -> bool:
    """Whether a file is read as JSON, by its name."""
    return _has_ending(path, TEXT_SUFFIXES)


def _has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    if path.name in _NO_RECORDS or path.name.startswith("."):
        return False
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return bool(suffixes) and suffixes[-1] in endings
