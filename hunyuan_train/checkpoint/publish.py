"""Folders that are whole or absent: checkpoints, exported models, merged ones.

A folder is written as NAME.incomplete and renamed once every byte of it is on disk, so whatever
bears the final name is whole, whenever the writer was killed. SHA256SUMS vouches for the files of
models (`sha256sum -c SHA256SUMS`); a checkpoint's manifest does so itself.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from hunyuan_train.checkpoint.errors import CheckpointError, NoRoomError
from hunyuan_train.checkpoint.read_back import Part, SumBeside, read_back
from hunyuan_train.checkpoint.verify import sum_file
from hunyuan_train.json_file import read_bytes
from hunyuan_train.planner.component import gigabytes
from hunyuan_train.progress import show_progress
from hunyuan_train.whole_file import FULL, sync

INCOMPLETE, REPLACED = ".incomplete", ".replaced"
CHECKSUMS = "SHA256SUMS"
SUM_LINE = re.compile(r"\\?(?P<digest>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<name>.+)")  # as sha256sum's
# A folder with one of these was written by an export or a merge, here or elsewhere.
MARKS_OF_A_MODEL = ("config.json", "adapter_config.json")


def check_vacant(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over something, unless asked to replace what is a model folder.

    Raises:
        CheckpointError: naming the folder and the remedy.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder} exists; give another folder, or --overwrite to replace it once the new one "
            "is whole"
        )
    if not any((folder / name).exists() for name in MARKS_OF_A_MODEL):
        raise CheckpointError(
            f"{folder} holds no model that --overwrite could replace; give another folder"
        )


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: to be made; its parent may be missing too.
        num_bytes: of all that is to be written.

    Raises:
        NoRoomError: naming what is needed and what is free.
    """
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    num_free = shutil.disk_usage(there).free
    if num_bytes > num_free:
        raise NoRoomError(
            f"{folder} needs {gigabytes(num_bytes)} and {there} has {gigabytes(num_free)} free; "
            "make room there, or give a folder on another disk"
        )


def unfinished_folder(folder: Path) -> Path:
    """Where a folder is written before it has its name."""
    return folder.with_name(folder.name + INCOMPLETE)


def begin_folder(folder: Path) -> Path:
    """Make the empty folder that `publish` will rename to `folder`.

    Raises:
        CheckpointError: it cannot be made there.
    """
    unfinished = unfinished_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        kind = NoRoomError if error.errno in FULL else CheckpointError
        raise kind(
            f"{unfinished} cannot be made ({error.strerror}); give a folder in a place that can be "
            "written"
        ) from error
    return unfinished


@contextmanager
def unfinished_until_published(folder: Path) -> Iterator[Path]:
    """Begin a folder; where the writing fails, nothing of it stays.

    Raises:
        NoRoomError: the disk is full.
    """
    unfinished = begin_folder(folder)
    try:
        yield unfinished
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoRoomError(
            f"{folder} could not be written ({error.strerror}); make room there, or give a folder "
            "on another disk"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone by now if it was published


def hash_file(
    path: Path,
    advance: Callable[[int], None] = lambda _: None,
    parts: Iterable[Part] = (),
) -> str:
    """SHA-256 of a file as it is read back from its disk, once it is safely there.

    Args:
        path: of the file.
        advance: told the bytes of each block that is read.
        parts: of which it is known what they were in memory.

    Raises:
        DiskError: the disk returns something else than was written.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as pool:
        beside = SumBeside(digest, pool)
        read_back(path, beside, parts, advance)
        beside.finish()
    return digest.hexdigest()


def hash_files(
    files: list[Path],
    advance: Callable[[int], None],
    parts: Mapping[str, Iterable[Part]] = MappingProxyType({}),
) -> dict[str, str]:
    """SHA-256 of files of one folder by name, several at a time.

    Args:
        files: all safely written.
        advance: told the bytes of each block that is read, from any thread.
        parts: of files, by name, of which it is known what they were in memory.
    """
    with ThreadPoolExecutor(num_threads()) as pool:
        digests = pool.map(lambda file: hash_file(file, advance, parts.get(file.name, ())), files)
        return {file.name: digest for file, digest in zip(files, digests, strict=True)}


def read_sums(folder: Path) -> dict[str, str]:
    """The digests that a model folder keeps of its files, by name; none where it keeps none.

    Raises:
        CheckpointError: the file of checksums is damaged.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        lines = read_bytes(path).decode("utf-8").splitlines()
        pairs = [SUM_LINE.fullmatch(line) for line in lines if line.strip()]
        return {pair["name"]: pair["digest"].lower() for pair in pairs}  # type: ignore[index]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no list of checksums, so nothing in its folder can be believed; copy the "
            "folder again, or remove that file if it belongs to something else"
        ) from error


def check_sums(files: Iterable[Path]) -> None:
    """Compare files with the checksums that lie beside them; those without are not looked at.

    Raises:
        CheckpointError: see `check_digest`.
    """
    known: dict[Path, dict[str, str]] = {}
    summed = []
    for file in files:
        if file.parent not in known:
            known[file.parent] = read_sums(file.parent)
        if file.name in known[file.parent]:
            summed.append(file)
    with show_progress("verifying", sum(file.stat().st_size for file in summed)) as advance:
        for file in summed:
            check_digest(file, sum_file(file, advance), known[file.parent])


def check_digest(file: Path, digest: str, known: Mapping[str, str]) -> None:
    """Compare the digest of what was read of a file with the one that its folder keeps, if any.

    Raises:
        CheckpointError: they differ.
    """
    if known.get(file.name, digest) != digest:
        raise CheckpointError(
            f"{file} is not what was written: its checksum is not the one in {CHECKSUMS} beside "
            "it; copy the file again, or, if you changed it on purpose, take its line out of "
            f"{CHECKSUMS}"
        )


def num_threads() -> int:
    """Threads that copy, convert or sum at once: half of them wait for the disk."""
    return min(8, 2 * (os.cpu_count() or 1))


def publish_summed(folder: Path, digests: dict[str, str]) -> None:
    """Add the digests, by file name, in the form that sha256sum checks, and publish."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    path = unfinished_folder(folder) / CHECKSUMS
    path.write_text("".join(lines), encoding="utf-8")
    sync(path)
    publish(folder)


def publish(folder: Path) -> None:
    """Give a finished folder its final name, replacing one of the same name."""
    unfinished = unfinished_folder(folder)
    replaced = folder.with_name(folder.name + REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    sync(unfinished)
    if folder.exists():
        folder.rename(replaced)  # deleting it in place could leave half of it under its name
    unfinished.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
