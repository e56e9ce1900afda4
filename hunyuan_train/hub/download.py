"""Brings files from a hub into a folder: only those that are needed, gone on from, checked.

A folder is whole once its marker is written, which lists each file as it was checked. A start that
finds marker and files asks no network.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.ask import ask_hub, bytes_below
from hunyuan_train.hub.names import RemoteName
from hunyuan_train.json_file import read_json_object
from hunyuan_train.progress import show_progress
from hunyuan_train.whole_file import make_folders, open_lock, open_whole

logger = logging.getLogger(__name__)

MARKER = Path(".cache", "hunyuan_train.json")  # in a folder that no reader of models looks into
FORMAT = 1
CHUNK_BYTES = 2**22
SPARE_BYTES = 2**28  # that stay free: logs, and what other programs write meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a repository, as the hub lists it."""

    path: str
    size: int
    sha256: str | None = None  # of large files
    git_sha1: str | None = None  # of small ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """All files of a model or a data set at one commit."""

    name: RemoteName
    commit: str
    files: list[RemoteFile]


def list_repository(name: RemoteName) -> Repository:
    """Ask the hub what a repository holds.

    Raises:
        ConfigError: see `ask_hub`; or a file that would leave its folder.
    """
    answer = ask_hub(name, {"action": "list"})
    files = [RemoteFile(**file) for file in answer["files"]]
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in file.path:
            raise ConfigError(f"{name} lists a file {file.path!r}, which would leave its folder")
    return Repository(name=name, commit=answer["commit"], files=files)


def is_whole(folder: Path) -> bool:
    """Whether everything that was asked for is there, unchanged since it was checked."""
    try:
        marker = read_json_object(folder / MARKER)
        stats = {path: (folder / path).stat() for path in marker["files"]}
        return marker["format"] == FORMAT and all(
            [stats[path].st_size, stats[path].st_mtime_ns] == kept
            for path, kept in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_origin(folder: Path) -> dict[str, Any]:
    """Where a folder was downloaded from: `hub`, `repo`, `commit`; empty where it was not."""
    try:
        return read_json_object(folder / MARKER)
    except (OSError, ValueError):
        return {}


def missing_files(folder: Path, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Those of which the folder has not every byte; that the bytes are right is checked later."""
    return [
        file
        for file in files
        if not (folder / file.path).is_file() or (folder / file.path).stat().st_size != file.size
    ]


def missing_bytes(folder: Path, files: Sequence[RemoteFile]) -> int:
    """Bytes that a download will add to the disk; pieces of files count as if they were not."""
    return sum(file.size for file in missing_files(folder, files))


def check_room(name: RemoteName, folder: Path, num_bytes: int) -> None:
    """Refuse a download that the disk has no room for, before its first byte.

    Raises:
        ConfigError: with both numbers and what to do.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free + _bytes_of_pieces(folder)
    if num_bytes and num_bytes + SPARE_BYTES > free:
        raise ConfigError(
            f"{name} takes {num_bytes / 1e9:,.2f} GB in {folder}, and the disk has "
            f"{free / 1e9:,.2f} GB of room; make room, or give a folder on a larger one with "
            "--download_dir. Nothing was downloaded"
        )


def _bytes_of_pieces(folder: Path) -> int:
    pieces = (*folder.rglob("*.incomplete"), *folder.rglob("*.part*"))
    return sum(piece.stat().st_size for piece in pieces if piece.is_file())


def fetch_files(repository: Repository, folder: Path, files: Sequence[RemoteFile]) -> None:
    """Download what is missing of some files, and compare all of them with the hub's checksums.

    Raises:
        ConfigError: no room, no network, no right to them, or a file that does not come as listed.
    """
    name, missing = repository.name, missing_files(folder, files)
    check_room(name, folder, sum(file.size for file in missing))
    if missing:
        make_folders(folder)
        request = {
            "action": "download",
            "commit": repository.commit,
            "folder": str(folder),
            "files": [asdict(file) for file in missing],
        }
        with show_progress(f"downloading {name.repo}", sum(f.size for f in missing)) as advance:
            before = bytes_below(folder)

            def show_bytes() -> None:
                nonlocal before
                now = bytes_below(folder)
                if now > before:
                    advance(now - before)
                    before = now

            ask_hub(name, request, while_waiting=show_bytes)
    check_files(name, folder, files)


def check_files(name: RemoteName, folder: Path, files: Sequence[RemoteFile]) -> None:
    """Read every file and compare it with the checksum that the hub lists.

    Raises:
        ConfigError: naming those that differ, which are removed, so that a new start gets them.
    """
    damaged = []
    with show_progress(f"checking {name.repo}", sum(file.size for file in files)) as advance:
        for file in files:
            path = folder / file.path
            if (
                not path.is_file()
                or path.stat().st_size != file.size
                or not _is_as_listed(path, file)
            ):
                damaged.append(file)
            advance(file.size)
    for file in damaged:
        (folder / file.path).unlink(missing_ok=True)
    if damaged:
        named = ", ".join(file.path for file in damaged[:3])
        raise ConfigError(
            f"{len(damaged)} of {len(files)} files of {name} did not arrive as the hub lists them "
            f"({named}) and were removed; start again, and these alone are downloaded"
        )


def _is_as_listed(path: Path, file: RemoteFile) -> bool:
    """Compare the bytes with the listed checksum; git names a file by its length and content."""
    if file.sha256 is None and file.git_sha1 is None:
        return True
    sum_ = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            sum_.update(chunk)
    return sum_.hexdigest() == (file.sha256 or file.git_sha1)


def write_marker(repository: Repository, folder: Path, files: Sequence[RemoteFile]) -> None:
    """Say that the folder is whole; the last step of a download."""
    stats = {file.path: (folder / file.path).stat() for file in files}
    name = repository.name
    marker = {
        "format": FORMAT,
        "hub": name.hub,
        "repo": name.repo,
        "commit": repository.commit,
        "files": {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()},
    }
    make_folders((folder / MARKER).parent)
    with open_whole(folder / MARKER) as file:
        file.write(json.dumps(marker).encode())


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time download into a folder; the others find it done.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        make_folders(folder.parent)
        lock = open_lock(folder.with_name(f".{folder.name}.lock"))
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made to download into ({error.strerror}); give a folder that can "
            "with --download_dir"
        ) from error
    with lock:
        began = time.monotonic()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logger.info("another process downloads into %s; waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            logger.info("waited %.0f s", time.monotonic() - began)
        yield
