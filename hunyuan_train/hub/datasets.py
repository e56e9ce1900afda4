"""Data sets by their name on a hub: which files a split has, and where they are kept here."""

import re
from fnmatch import fnmatch
from os.path import exists
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.download import (
    RemoteFile,
    Repository,
    fetch_files,
    is_whole,
    list_repository,
    lock_folder,
    write_marker,
)
from hunyuan_train.hub.names import DEFAULT_FOLDER, RemoteName, parse_data_name

CARD = "README.md"
DATA_FILE = re.compile(
    r".*\.(jsonl|json|ndjson|csv|tsv|parquet|arrow|feather)(\.(gz|zst|zstd|bz2|xz))?", re.IGNORECASE
)
NO_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
# Words in the path of a file that say its split, as the `datasets` library reads them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
Splits = dict[str, list[RemoteFile]]


def fetch_data_names(names: str, *, download_dir: Path = DEFAULT_FOLDER) -> str:
    """Download the data sets among comma-separated names, and give the folders in their place.

    Raises:
        ConfigError: see `fetch_data`.
    """
    if exists(names):  # a path may hold a comma or a colon
        return names
    words = []
    for word in names.split(","):
        name = parse_data_name(word.strip())
        if name is None:
            words.append(word)
            continue
        folder = fetch_data(name, download_dir)
        words.append(f"{folder}:{name.weight}" if name.weight else str(folder))
    return ",".join(words)


def fetch_data(name: RemoteName, download_dir: Path) -> Path:
    """Download one split of a data set.

    Returns:
        a folder with its files and nothing else that is read as data.

    Raises:
        ConfigError: no such split, several to choose from, no files that are read, or `ask_hub`.
    """
    folder = name.folder(download_dir)
    if is_whole(folder):
        return folder
    repository = list_repository(name)
    with lock_folder(folder):
        splits = _find_splits(repository, folder)
        files = _choose_split(name, splits)
        fetch_files(repository, folder, files)
        write_marker(repository, folder, files)
    return folder


def _find_splits(repository: Repository, folder: Path) -> Splits:
    """The files of each split: as the card lists them, else by the words in their paths."""
    name = repository.name
    card = [file for file in repository.files if file.path == CARD]
    fetch_files(repository, folder, card)
    listed = _read_card(folder / CARD) if card else []
    chosen = _choose_subset(name, listed)
    if chosen is not None:
        found = {
            split: [file for file in repository.files if _fits(file.path, patterns)]
            for split, patterns in _patterns_by_split(chosen["data_files"]).items()
        }
        return {split: files for split, files in found.items() if files}
    splits: Splits = {}
    for file in repository.files:
        if DATA_FILE.fullmatch(file.path) and file.path.rsplit("/", 1)[-1] not in NO_DATA:
            splits.setdefault(_split_by_path(file.path), []).append(file)
    return splits


def _read_card(path: Path) -> list[dict[str, Any]]:
    """The subsets that a card's head lists with their files; none where it lists none."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", path.read_text("utf-8", "replace"), re.DOTALL)
    if match is None:
        return []
    try:
        head = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return []
    subsets = head.get("configs") if isinstance(head, dict) else None
    return [
        one
        for one in (subsets if isinstance(subsets, list) else [])
        if isinstance(one, dict) and one.get("data_files")
    ]


def _choose_subset(name: RemoteName, subsets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The subset that is meant, which is the only or the default one where none is named."""
    by_name = {str(one.get("config_name", "default")): one for one in subsets}
    if name.subset:
        if name.subset not in by_name:
            known = ", ".join(by_name) or "none"
            raise ConfigError(f"{name} has no subset {name.subset}; it has {known}")
        return by_name[name.subset]
    if not by_name:
        return None
    marked = [one for one in subsets if one.get("default")]
    chosen = marked[0] if marked else by_name.get("default")
    if chosen is None and len(by_name) > 1:
        names = ", ".join(by_name)
        raise ConfigError(
            f"{name} has the subsets {names}; name one, like {name.written}/{next(iter(by_name))}"
        )
    return chosen or subsets[0]


def _patterns_by_split(data_files: Any) -> dict[str, list[str]]:  # noqa: ANN401  YAML of anybody's
    """What a card says of one subset, in each of the forms that the hub takes."""
    if isinstance(data_files, dict):
        return {str(split): _as_list(paths) for split, paths in data_files.items()}
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        is_named = isinstance(entry, dict)
        split = str(entry.get("split", "train")) if is_named else "train"
        paths = entry.get("path", []) if is_named else entry
        patterns.setdefault(split, []).extend(_as_list(paths))
    return patterns


def _as_list(paths: Any) -> list[str]:  # noqa: ANN401
    return [str(path) for path in (paths if isinstance(paths, list) else [paths])]


def _fits(path: str, patterns: list[str]) -> bool:
    return any(path == one or fnmatch(path, one.removeprefix("./")) for one in patterns)


def _split_by_path(path: str) -> str:
    words = set(re.split(r"[^a-z]+", path.lower()))
    for split, its_words in SPLIT_WORDS.items():
        if words & set(its_words):
            return split
    return "train"


def _choose_split(name: RemoteName, splits: Splits) -> list[RemoteFile]:
    """The files of the split that is meant: the named one, that for training, or the only one."""
    if not splits:
        raise ConfigError(
            f"{name} holds no file that is read as dialogues (.jsonl, .json, .csv, .parquet and "
            "more); take another data set, or write it as JSON lines"
        )
    if name.split is None and len(splits) == 1:
        return next(iter(splits.values()))
    wanted = name.split or "train"
    if wanted not in splits:
        named = f"no split {wanted}" if name.split else "no split train"
        raise ConfigError(
            f"{name} has {named}; it has {', '.join(splits)}: name one, like "
            f"{name.written.removesuffix(f':{name.split}')}:{next(iter(splits))}"
        )
    return splits[wanted]
