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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.build import build_dataset, refuse_errors
from hunyuan_train.data.compiled.compile import CompileSettings, Split
from hunyuan_train.data.compiled.held_out import choose_hash_bound, is_bound
from hunyuan_train.data.compiled.memos import read_memo, write_memo
from hunyuan_train.data.compiled.repeats import SeenHashes
from hunyuan_train.data.compiled.verification import find_damage, is_verified, stamp_verified
from hunyuan_train.data.dataset import Dataset, is_whole, map_array, read_summary
from hunyuan_train.data.findings import FindingLog, parse_policies
from hunyuan_train.data.reading.readers import ChangedFileError, hash_file
from hunyuan_train.data.reading.sources import (
    Listing,
    Source,
    find_sources,
    list_sources,
    report_unread,
)
from hunyuan_train.data.records.record import RecordKind
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.shipped import PACKAGE
from hunyuan_train.source_hash import hash_source
from hunyuan_train.whole_file import open_lock, open_whole

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = Path.home() / ".cache" / "hunyuan_train"

_SETTLED_SECONDS = 2.0  # a file older than this when it was hashed has kept its time stamp since
_ABANDONED_SECONDS = 24 * 3600.0


def prepare_dataset(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    split: Split = "train",
    records: RecordKind = "dialogues",
) -> Dataset:
    """The samples of one side of a run, compiled now or opened from the cache.

    Any number of processes may call this at once: one compiles and verifies, the others wait.

    Args:
        split: "train", or "eval" for the eval file or else the held-out share.
        records: what the objective learns from.

    Raises:
        DataError: naming what `data check` would refuse too; or there is no evaluation data.
    """
    dataset = _prepare(config, tokenizer, split=split, records=records)
    if dataset is None:
        raise DataError(
            f"eval_fraction is {config.eval_fraction:g}, and the samples of "
            f"{config.train_data_file} have one question only, so nothing can be held out; give "
            "more dialogues, or an eval_data_file"
        )
    return dataset


def prepare_evaluation(
    config: DataConfig, tokenizer: Tokenizer, *, records: RecordKind = "dialogues"
) -> Dataset | None:
    """The held-out samples; None where none are asked for, and where none can be held out."""
    if config.eval_data_file is None and not config.eval_fraction:
        return None
    return _prepare(config, tokenizer, split="eval", records=records)


def _prepare(
    config: DataConfig, tokenizer: Tokenizer, *, split: Split, records: RecordKind
) -> Dataset | None:
    """`prepare_dataset`, once more where a file changes while it is read; None: nothing held out.

    What the quick test of a file may miss is seen when it is read: what gets tokenized is hashed.
    """
    for is_last in (False, False, True):
        try:
            return _prepare_once(config, tokenizer, split=split, records=records)
        except ChangedFileError as error:
            if is_last:
                raise
            logger.warning("%s", error)
            for source in find_sources(choose_files(config, split)[0]):
                _memo_of(source.path, find_cache_dir(config)).unlink(missing_ok=True)
    raise AssertionError("the last try returns or raises")


def _prepare_once(
    config: DataConfig, tokenizer: Tokenizer, *, split: Split, records: RecordKind
) -> Dataset | None:
    names, setting = choose_files(config, split)
    listing = list_sources(names, setting=setting)
    settings = choose_settings(config, records)
    noted = _judge_unread(listing, settings)
    sources = listing.sources
    eval_set = None
    if split == "train" and config.eval_data_file:
        eval_set = prepare_dataset(config, tokenizer, split="eval", records=records)
    cache_dir = find_cache_dir(config)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        hashes = [_hash_source(source.path, cache_dir) for source in sources]
        if holds_out_share(config):
            bound = _find_bound(sources, hashes, settings, tokenizer, config)
            if bound is None and split == "eval":
                return None
            if bound is not None:
                settings = replace(settings, split=split, held_out_below=bound)
        key = make_key(hashes, settings, tokenizer, eval_set)
        identity = _identify(key, sources, hashes)
        folder = cache_dir / key
        work = _Work(sources, hashes, settings, tokenizer, eval_set, identity)
        if not is_verified(folder, identity):
            with lock_out(folder):
                if not is_verified(folder, identity):
                    _build_verified(work, folder, config.preprocessing_num_workers)
    except OSError as error:
        raise DataError(
            f"the tokenized data cannot be written to {cache_dir}: {error.strerror}; free some "
            f"room, or set cache_dir to another disk"
        ) from error
    return open_dataset(folder, sources, hashes, tokenizer, settings, noted)


def find_cache_dir(config: DataConfig) -> Path:
    """Where tokenized data is kept, and what is computed of it."""
    return Path(config.cache_dir) if config.cache_dir else DEFAULT_CACHE_DIR


def holds_out_share(config: DataConfig) -> bool:
    """Whether a share of the training data is held out."""
    return config.eval_data_file is None and config.eval_fraction > 0


def choose_files(config: DataConfig, split: Split) -> tuple[str, str]:
    """Which files a side of a run reads, and the setting that names them."""
    if split == "eval" and config.eval_data_file is not None:
        return config.eval_data_file, "eval_data_file"
    if split == "eval" and not holds_out_share(config):
        raise DataError("there is no evaluation data; set eval_data_file or eval_fraction")
    return config.train_data_file, "train_data_file"


def choose_settings(config: DataConfig, records: RecordKind = "dialogues") -> CompileSettings:
    """How both sides are read, before one is held out of the other."""
    return CompileSettings(
        max_seq_length=config.max_seq_length,
        mode=config.mode,
        history=config.history,
        overlong=config.overlong,
        now=config.now or "",
        policy=parse_policies(config.data_policy or ""),
        compares_questions=config.eval_data_file is not None,
        records=records,
    )


def _judge_unread(listing: Listing, settings: CompileSettings) -> FindingLog:
    """Note the entries of folders that are not read.

    Raises:
        DataError: some of them ought to be.
    """
    log = FindingLog()
    log.add(report_unread(listing.unread, settings.build_policies()))
    refuse_errors(log, settings.policy)
    return log


def _find_bound(
    sources: Sequence[Source],
    hashes: Sequence[str],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    config: DataConfig,
) -> int | None:
    """`choose_hash_bound`, remembered for these files, so that ranks need not read them."""
    share = config.eval_fraction
    settings = replace(settings, compares_questions=True)
    key = make_key([*hashes, f"{share:.17g}"], settings, tokenizer, None)
    memo = find_cache_dir(config) / f"{key}.held_out.json"
    known = read_memo(memo, key) or {}
    if "below" in known and is_bound(known["below"]):
        return known["below"]
    bound = choose_hash_bound(sources, hashes, settings, tokenizer, share=share)
    _write_whole(memo, write_memo(key, {"below": bound}))
    return bound


def open_dataset(
    folder: Path,
    sources: Sequence[Source],
    hashes: Sequence[str],
    tokenizer: Tokenizer,
    settings: CompileSettings,
    noted: FindingLog,
) -> Dataset:
    """Map a compiled data set; `noted` is what was found beside its files."""
    has_weights = (folder / "weights.bin").exists()
    summary = read_summary(folder)
    summary = replace(
        summary,
        num_findings={**noted.by_kind(), **summary.num_findings},
        noted_fields={**noted.noted_fields(), **summary.noted_fields},
    )
    return Dataset(
        paths=[str(source.path) for source in sources],
        source_weights=[source.weight for source in sources],
        source_hashes=hashes,
        max_seq_length=settings.max_seq_length,
        pad_id=tokenizer.pad_id,
        tokenizer_hash=tokenizer.content_hash,
        summary=summary,
        samples=map_array(folder, "samples"),
        records=map_array(folder, "records"),
        tokens=map_array(folder, "tokens"),
        spans=map_array(folder, "spans"),
        weights=map_array(folder, "weights") if has_weights else None,
        sides=map_array(folder, "sides") if settings.records != "dialogues" else None,
        is_paired=settings.records == "pairs",
        lengths=map_array(folder, "lengths"),
        folder=folder,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What a data set is made of."""

    sources: Sequence[Source]
    hashes: Sequence[str]  # of the content of each
    settings: CompileSettings
    tokenizer: Tokenizer
    eval_set: Dataset | None
    identity: dict[str, Any]  # see `_identify`

    def find_damage(self, folder: Path) -> str:
        """What is wrong with a data set made of this; "" where nothing is."""
        return find_damage(folder, self.identity, vocab_size=self.tokenizer.vocab_size)


def _build_verified(work: _Work, folder: Path, num_workers: int) -> None:
    """Leave a folder that holds what was written there, built now where it does not."""
    damage = work.find_damage(folder) if folder.exists() else "it is not there"
    if damage:
        if folder.exists():
            logger.warning(
                "the tokenized data in %s is damaged and is built again: %s", folder, damage
            )
            shutil.rmtree(folder)
        _build(work, folder, num_workers)
        damage = work.find_damage(folder)
    if damage:
        raise DataError(
            f"the tokenized data in {folder} is damaged as soon as it is written ({damage}); set "
            "cache_dir to another disk"
        )
    stamp_verified(folder, work.identity)


def _build(work: _Work, folder: Path, num_workers: int) -> None:
    """Compile into a folder of our own and give it its name."""
    eval_questions = None
    if work.eval_set is not None:
        eval_questions = SeenHashes()
        eval_questions.add(np.asarray(work.eval_set.records["question_hash"]))
    _clear_abandoned(folder)
    building = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.building")
    building.mkdir()
    try:
        build_dataset(
            work.sources,
            work.hashes,
            work.settings,
            work.tokenizer,
            building,
            identity=work.identity,
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


def _identify(key: str, sources: Sequence[Source], hashes: Sequence[str]) -> dict[str, Any]:
    """What a data set says of itself, for its folder can be given another name.

    The sizes are those of the files now: a wrong hash, out of a memo, then seldom passes.
    """
    sizes = [source.path.stat().st_size for source in sources]
    return {"key": key, "sources": [list(pair) for pair in zip(hashes, sizes, strict=True)]}


def _hash_source(path: Path, cache_dir: Path) -> str:
    """The hash of a file's content, remembered for as long as the file is not touched.

    Whatever is written to a file, its change time moves; no program can set that one back.
    """
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    memo, subject = _memo_of(path, cache_dir), str(path.resolve())
    known = read_memo(memo, subject) or {}
    if known.get("state") == state:
        return str(known["hash"])
    try:
        digest = hash_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    if known and known["hash"] != digest:
        logger.info("%s has another content than at the last start", path)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
        _write_whole(memo, write_memo(subject, {"state": state, "hash": digest}))
    return digest


def _memo_of(path: Path, cache_dir: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return cache_dir / f"{name}.hash.json"


@functools.cache
def _hash_code() -> str:
    """Any change to how records are read or to how a grammar writes them may change the tokens."""
    reading = hash_source(PACKAGE / "data", left_out=("commands.py", "inspection"))
    return reading + hash_source(PACKAGE / "families" / "grammar")


def _write_whole(path: Path, text: str) -> None:
    with open_whole(path, is_ours=True) as file:
        file.write(text.encode())


@contextmanager
def lock_out(path: Path) -> Iterator[None]:
    """Hold the one right to build a folder or file; it is given up by the system when we die."""
    with open_lock(path.with_name(f"{path.name}.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that tokenizes the same data")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("no locks in %s (%s): processes may work twice", path.parent, error)
        yield


def _clear_abandoned(folder: Path) -> None:
    """Remove what a killed build left."""
    for building in folder.parent.glob("*.building"):
        host, pid = building.name.removesuffix(".building").split(".", 1)[1].rsplit(".", 1)
        is_dead = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        if is_dead or time.time() - building.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(building, ignore_errors=True)
