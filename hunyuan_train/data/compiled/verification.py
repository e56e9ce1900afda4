"""Whether a compiled data set on the disk is still what was written there.

Every file is hashed once a start and host: at 1.2 GB/s of SHA-256, 4 s for a billion tokens. The
process that does it leaves a stamp, by which the ranks of the same start pass; a file that was
touched since has another change time, and is hashed again.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hunyuan_train.data.compiled.memos import read_memo, write_memo
from hunyuan_train.data.dataset import (
    CHOSEN,
    DTYPES,
    REJECTED,
    is_whole,
    map_array,
    read_hashes,
    read_identity,
)
from hunyuan_train.data.reading.readers import hash_file
from hunyuan_train.whole_file import open_whole

STAMP = "verified.json"
SIDES = (CHOSEN, REJECTED)
STAMP_SECONDS = 600.0  # in which all ranks of a start have come

_NUM_TOKENS_AT_ONCE = 1 << 24


def find_damage(folder: Path, identity: Mapping[str, Any], *, vocab_size: int) -> str:
    """What is wrong with a data set that is to be of this identity; "" where nothing is."""
    if not is_whole(folder):
        return "files are missing or cut"
    if read_identity(folder) != identity:
        return "it was made of other data than its name says"
    hashes = read_hashes(folder)
    for name, expected in hashes.items():
        if hash_file(folder / name) != expected:
            return f"{name} is not what was written"
    return _find_misplaced(folder, vocab_size=vocab_size, num_sources=len(identity["sources"]))


def _find_misplaced(folder: Path, *, vocab_size: int, num_sources: int) -> str:
    """Numbers that point nowhere: a hash only says who wrote them."""
    arrays = {name: map_array(folder, name) for name in DTYPES if (folder / f"{name}.bin").exists()}
    tokens, samples, records = arrays["tokens"], arrays["samples"], arrays["records"]
    starts = range(0, len(tokens), _NUM_TOKENS_AT_ONCE)
    pieces = (tokens[start : start + _NUM_TOKENS_AT_ONCE] for start in starts)
    largest = max((piece.max() for piece in pieces), default=0)
    if largest >= vocab_size:
        return f"the token {largest} is beyond the vocabulary of {vocab_size}"
    if any(len(arrays[name]) != len(tokens) for name in ("spans", "weights") if name in arrays):
        return "tokens and their loss differ in number"
    sides = arrays.get("sides")
    if sides is not None and (len(sides) != len(samples) or not np.isin(sides, SIDES).all()):
        return "samples and their sides do not go together"
    for part in ("history", "target"):
        first, last = samples[f"{part}_start"], samples[f"{part}_start"] + samples[f"{part}_length"]
        if not ((first >= 0).all() and (first <= last).all() and (last <= len(tokens)).all()):
            return "samples lie outside of the tokens"
    for values, limit in ((samples["record"], len(records)), (records["source"], num_sources)):
        if not ((values >= 0).all() and (values < limit).all()):
            return "samples or records belong to nothing"
    return ""


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
