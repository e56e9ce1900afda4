"""What `train_data_file` names: files and folders, each with a weight, and what a folder holds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.data.findings import DataError

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst")

_WEIGHT = re.compile(r"(?P<path>.+):(?P<weight>[0-9.]+)")
_NO_RECORDS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file, and how often an epoch shows its samples."""

    path: Path
    weight: float = 1.0


def find_sources(names: str) -> list[Source]:
    """The files behind `a.jsonl:2,folder,b.parquet:0.5`, in that order."""
    if Path(names).exists():  # a path may hold a comma or a colon
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
    if not weight > 0:
        raise DataError(f"the weight in '{word}' must be above 0; leave the file out instead")
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
    return [Source(file, weight) for file in files]


def is_data_file(path: Path) -> bool:
    """Whether a file is read as data, by its name."""
    if path.name in _NO_RECORDS or path.name.startswith("."):
        return False
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return bool(suffixes) and suffixes[-1] in (*TEXT_SUFFIXES, *TABLE_SUFFIXES)
