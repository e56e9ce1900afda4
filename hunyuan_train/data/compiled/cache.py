"""Compiled data sets on the disk, found again by the content that went into them.

A data set is built in a folder of its own and published by one rename, so that a name either does
not exist or is whole, whenever a run is killed. A lock keeps other processes waiting meanwhile; it
only spares work: two builders would publish the same bytes.

The door of `compiled`: the settings of a run's data go in, a `Dataset` comes out.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.build import build_dataset
from hunyuan_train.data.compiled.compile import CompileSettings, Split
from hunyuan_train.data.compiled.repeats import SeenHashes
from hunyuan_train.data.dataset import Dataset, is_whole, map_array, read_summary
from hunyuan_train.data.findings import parse_policies
from hunyuan_train.data.reading.sources import Source, find_sources
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.shipped import PACKAGE
from hunyuan_train.source_hash import hash_source

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = Path.home() / ".cache" / "hunyuan_train"

_SETTLED_SECONDS = 2.0  # a file older than this when it was hashed has kept its time stamp since
_ABANDONED_SECONDS = 24 * 3600.0


def prepare_dataset(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    split: Split = "train",
) -> Dataset:
    """The samples of one side of a run, compiled now or opened from the cache.

    Any number of processes may call this at once: one compiles, the others wait.

    Args:
        split: "train", or "eval" for the eval file or else the held-out share.

    Raises:
        DataError: naming what `data check` would refuse too.
    """
    names, settings = choose_split(config, split)
    sources = find_sources(names)
    eval_set = None
    if split == "train" and config.eval_data_file:
        eval_set = prepare_dataset(config, tokenizer, split="eval")
    cache_dir = Path(config.cache_dir) if config.cache_dir else DEFAULT_CACHE_DIR
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        hashes = [_hash_source(source.path, cache_dir) for source in sources]
        key = make_key(hashes, settings, tokenizer, eval_set)
        folder = cache_dir / key
        if not is_whole(folder):
            with _lock(folder):
                if not is_whole(folder):
                    num_workers = config.preprocessing_num_workers
                    _build(sources, settings, tokenizer, folder, eval_set, num_workers)
    except OSError as error:
        raise DataError(
            f"the tokenized data cannot be written to {cache_dir}: {error.strerror}; free some "
            f"room, or set cache_dir to another disk"
        ) from error
    return open_dataset(folder, sources, hashes, tokenizer, settings.max_seq_length)


def choose_split(config: DataConfig, split: Split) -> tuple[str, CompileSettings]:
    """Which files a side of a run reads, and how."""
    names = config.train_data_file
    is_shared = config.eval_data_file is None and config.eval_fraction > 0
    if split == "eval" and config.eval_data_file is not None:
        names = config.eval_data_file
    elif split == "eval" and not is_shared:
        raise DataError("there is no evaluation data; set eval_data_file or eval_fraction")
    return names, CompileSettings(
        max_seq_length=config.max_seq_length,
        mode=config.mode,
        history=config.history,
        overlong=config.overlong,
        now=config.now or "",
        policy=parse_policies(config.data_policy or ""),
        split=split if is_shared else "all",
        eval_fraction=config.eval_fraction if is_shared else 0.0,
        compares_questions=config.eval_data_file is not None,
    )


def open_dataset(
    folder: Path,
    sources: Sequence[Source],
    hashes: Sequence[str],
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> Dataset:
    """Map a compiled data set."""
    has_weights = (folder / "weights.bin").exists()
    return Dataset(
        paths=[str(source.path) for source in sources],
        source_weights=[source.weight for source in sources],
        source_hashes=hashes,
        max_seq_length=max_seq_length,
        pad_id=tokenizer.pad_id,
        tokenizer_hash=tokenizer.content_hash,
        summary=read_summary(folder),
        samples=map_array(folder, "samples"),
        records=map_array(folder, "records"),
        tokens=map_array(folder, "tokens"),
        spans=map_array(folder, "spans"),
        weights=map_array(folder, "weights") if has_weights else None,
    )


def _build(
    sources: Sequence[Source],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    folder: Path,
    eval_set: Dataset | None,
    num_workers: int,
) -> None:
    """Compile into a folder of our own and give it its name."""
    eval_questions = None
    if eval_set is not None:
        eval_questions = SeenHashes()
        eval_questions.add(np.asarray(eval_set.records["question_hash"]))
    _clear_abandoned(folder)
    building = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.building")
    building.mkdir()
    try:
        build_dataset(
            sources,
            settings,
            tokenizer,
            building,
            eval_questions=eval_questions,
            num_workers=num_workers,
        )
        _publish(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, folder: Path) -> None:
    try:
        os.rename(building, folder)
    except OSError:
        if not is_whole(folder):  # where locks do not hold, another may have published it
            raise
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_key(
    source_hashes: Sequence[str],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    eval_set: Dataset | None,
) -> str:
    """A name made of everything that decides the tokens: data, tokenizer, settings, this code."""
    parts = {
        "data": list(source_hashes),
        "tokenizer": tokenizer.content_hash,
        "settings": asdict(settings),
        "eval": eval_set.fingerprint if eval_set else None,
        "code": _hash_code(),
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash_source(path: Path, cache_dir: Path) -> str:
    """The hash of a file's content, remembered for as long as the file is not touched."""
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ino]
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    memo = cache_dir / f"{name}.hash.json"
    try:
        known = json.loads(memo.read_text())
        if known["state"] == state:
            return str(known["hash"])
    except (OSError, ValueError, KeyError):
        pass  # not hashed yet, or a memo of another version
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - status.st_mtime > _SETTLED_SECONDS:
        _write_whole(memo, json.dumps({"path": str(path), "state": state, "hash": digest}))
    return digest


@functools.cache
def _hash_code() -> str:
    """Any change to how records are read or to how a grammar writes them may change the tokens."""
    reading = hash_source(PACKAGE / "data", left_out=("commands.py", "inspection"))
    return reading + hash_source(PACKAGE / "families" / "grammar")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the one right to build a folder; it is given up by the system when we die."""
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that tokenizes the same data")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("no locks in %s (%s): processes may work twice", folder.parent, error)
        yield


def _clear_abandoned(folder: Path) -> None:
    """Remove what a killed build left, and a data set of this name that is not whole."""
    if folder.exists():
        logger.warning("the tokenized data in %s is damaged and is built again", folder)
        shutil.rmtree(folder)
    for building in folder.parent.glob("*.building"):
        host, pid = building.name.removesuffix(".building").split(".", 1)[1].rsplit(".", 1)
        is_dead = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        if is_dead or time.time() - building.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(building, ignore_errors=True)
