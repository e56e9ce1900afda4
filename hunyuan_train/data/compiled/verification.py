"""Whether a compiled data set on the disk is still what was written there.

Every file is read and summed once a start and host. The process that does it leaves a stamp, by
which the ranks of the same start pass; a file that was touched since has another change time, and
is read again.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hunyuan_train.data.compiled.memos import read_memo, write_memo
from hunyuan_train.data.dataset import (
    CHOSEN,
    DTYPES,
    REJECTED,
    is_whole,
    read_identity,
    read_sums,
)
from hunyuan_train.whole_file import open_whole

STAMP = "verified.json"
SIDES = (CHOSEN, REJECTED)
STAMP_SECONDS = 600.0  # in which all ranks of a start have come

_NUM_AT_ONCE = 1 << 17  # entries of a file: few enough to stay in a core's cache

Check = Callable[[npt.NDArray[Any]], str]  # what is wrong with some entries, or ""


def find_damage(folder: Path, identity: Mapping[str, Any], *, vocab_size: int) -> str:
    """What is wrong with a data set that is to be of this identity; "" where nothing is."""
    if not is_whole(folder):
        return "files are missing or cut"
    if read_identity(folder) != identity:
        return "it was made of other data than its name says"
    sums = read_sums(folder)
    sizes = {Path(name).stem: (folder / name).stat().st_size for name in sums}
    counts = {name: size // DTYPES[name].itemsize for name, size in sizes.items()}
    if any(counts[name] != counts["tokens"] for name in ("spans", "weights") if name in counts):
        return "tokens and their loss differ in number"
    if any(counts[name] != counts["samples"] for name in ("lengths", "sides") if name in counts):
        return "samples and what is known of each differ in number"
    checks = _make_checks(counts, vocab_size=vocab_size, num_sources=len(identity["sources"]))

    def find_fault(name: str) -> str:
        return _find_fault(folder / f"{name}.bin", sums[f"{name}.bin"], checks.get(name))

    with ThreadPoolExecutor(len(counts)) as pool:
        return next(filter(None, pool.map(find_fault, counts)), "")


def _make_checks(
    counts: Mapping[str, int], *, vocab_size: int, num_sources: int
) -> dict[str, Check]:
    """What must hold of the entries of each file: a sum only says who wrote them."""

    def check_tokens(tokens: npt.NDArray[Any]) -> str:
        largest = tokens.max()
        is_known = largest < vocab_size
        return "" if is_known else f"the token {largest} is beyond the vocabulary of {vocab_size}"

    def check_samples(samples: npt.NDArray[Any]) -> str:
        for part in ("history", "target"):
            first, length = samples[f"{part}_start"], samples[f"{part}_length"]
            is_inside = length.min() >= 0 and (first + length).max() <= counts["tokens"]
            if not (is_inside and first.min() >= 0):
                return "samples lie outside of the tokens"
        return check_owners(samples["record"], counts["records"])

    def check_owners(owners: npt.NDArray[Any], limit: int) -> str:
        is_known = owners.min() >= 0 and owners.max() < limit
        return "" if is_known else "samples or records belong to nothing"

    def check_sides(sides: npt.NDArray[Any]) -> str:
        is_known = np.isin(sides, SIDES).all()
        return "" if is_known else "samples and their sides do not go together"

    return {
        "tokens": check_tokens,
        "samples": check_samples,
        "records": lambda records: check_owners(records["source"], num_sources),
        "sides": check_sides,
    }


def _find_fault(path: Path, expected: str, check: Check | None) -> str:
    """Read a file once, sum it and check its entries."""
    digest, fault = xxhash.xxh3_128(), ""
    for entries in _read_entries(path, DTYPES[path.stem]):
        digest.update(entries.view("u1").data)
        fault = fault or (check(entries) if check else "")
    return fault if digest.hexdigest() == expected else f"{path.name} is not what was written"


def _read_entries(path: Path, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """The entries of a file, some at a time, each good until the next."""
    buffer = np.empty(_NUM_AT_ONCE, dtype)
    with path.open("rb") as file:
        while size := file.readinto(buffer.view("u1").data):
            yield buffer[: size // dtype.itemsize]  # what is cut off inside of one is not summed


def is_verified(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a process has just verified these files to be of this identity, untouched since."""
    stamp = read_memo(folder / STAMP, identity)
    try:
        return bool(
            stamp
            and 0 <= time.time() - stamp["time"] < STAMP_SECONDS
            and stamp["files"] == _describe_files(folder)
        )
    except OSError:
        return False


def stamp_verified(folder: Path, identity: Mapping[str, Any]) -> None:
    """Let the other processes of this start pass; where nothing can be written, each verifies."""
    text = write_memo(identity, {"time": time.time(), "files": _describe_files(folder)})
    with suppress(OSError), open_whole(folder / STAMP, is_ours=True) as file:
        file.write(text.encode())


def _describe_files(folder: Path) -> list[Any]:
    files = [*sorted(folder.glob("*.bin")), folder / "summary.json"]
    return [[file.name, *_describe_state(file.stat())] for file in files]


def _describe_state(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
