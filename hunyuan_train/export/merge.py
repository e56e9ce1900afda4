"""Merge an adapter into its base, file by file: bytes in, bytes out, a few blocks in memory.

Every file is written in one pass, first byte to last. A block that the adapter does not touch is
written as it was read; one that it touches is compared with what it was. So the pass knows what it
changed, and that nothing else can have changed. It sums the bytes that it reads, which must be
those that the base's SHA256SUMS names, where it has one. It sums the bytes as they are meant to be,
too: what a disk makes of them, `sha256sum -c SHA256SUMS` tells at any time.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from math import isfinite
from pathlib import Path
from threading import Event, Lock

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import (
    check_digest,
    check_room,
    check_sums,
    hash_files,
    num_threads,
    publish_summed,
    read_sums,
    unfinished_until_published,
)
from hunyuan_train.checkpoint.read_back import SumBeside, WrittenParts
from hunyuan_train.errors import DataError
from hunyuan_train.export.check import (
    MAX_PARAMETERS_BESIDE,
    TOO_LARGE,
    check_effect,
    check_merged,
    compare_merged,
    load_source,
    make_prompts,
    plain_losses,
)
from hunyuan_train.export.companions import copy_files
from hunyuan_train.export.huggingface_folder import (
    Release,
    complete_files,
    create_weight_files,
    read_locations,
    write_weights,
)
from hunyuan_train.export.lora_delta_rows import ChangeReader
from hunyuan_train.export.lora_deltas import DESCRIPTION, WEIGHTS, Change, Merge, open_merge
from hunyuan_train.export.manifest import write_manifest
from hunyuan_train.export.new_rows import NewRows
from hunyuan_train.export.served_config import read_config
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.new_tokens import add_stored
from hunyuan_train.families.registry import read_shape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.released_files import SUFFIX
from hunyuan_train.model.safetensors_files import bytes_of, read_range
from hunyuan_train.model.safetensors_header import ITEMSIZES, TensorLocation, largest
from hunyuan_train.model.weights import LocatedSource, SafetensorsFolder
from hunyuan_train.past_cache import PastCache
from hunyuan_train.progress import show_progress

logger = logging.getLogger(__name__)

# Of changed rows and of the rest: they stay in the processor's cache from reading to writing.
BLOCK_BYTES = 2**20
# Matrix products take rows in groups. A block that ends within one is rounded in another way.
ROWS_TOGETHER = 8
SUMS_PENDING = 4  # blocks of a file that wait to be summed
MATRIX_BYTES = 2**29  # of adapters in memory, over all files
WHOLE_NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size of an element


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [start, stop) of a weight file: some rows of a changed tensor, or none of any."""

    start: int
    stop: int
    name: str = ""  # of the changed tensor
    location: TensorLocation | None = None
    first_row: int = 0


@dataclass(slots=True)
class Difference:
    """How a merged file differs from its original."""

    sha256: str = ""
    original_sha256: str = ""  # of the bytes that were read; "" where nobody knows what it was
    num_changed: dict[str, int] = field(default_factory=dict)  # elements, by tensor
    largest: float = 0.0

    def add(self, name: str, before: Tensor, after: Tensor) -> None:
        """Count a block of a changed tensor.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        change = (after - before).abs_()
        highest = float(change.max())  # NaN, if there is one
        if not isfinite(highest):
            raise CheckpointError(
                f"{name} holds NaN or infinity once merged; the adapter or the base is damaged"
            )
        # As whole numbers, of which numpy counts ten times as many a second as torch of bfloat16.
        bits = change.view(WHOLE_NUMBERS[change.itemsize]).numpy()
        self.num_changed[name] = self.num_changed.get(name, 0) + int(np.count_nonzero(bits))
        self.largest = max(self.largest, highest)


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Write the base with the adapter merged in, in the base's own files, names and dtypes.

    Args:
        base: a model folder, of either layout.
        adapter: a PEFT folder.
        folder: the final folder; it appears, or is replaced, only once it is whole.

    Raises:
        CheckpointError: the adapter does not belong on the base, or changes nothing.
        ServeError: the merged model computes something else than base and adapter.
    """
    merge = open_merge(base, adapter)
    check_room(folder, sum(one.num_bytes for one in merge.weights.values()))
    known = read_sums(base)
    check_sums(sorted(adapter / name for name in (WEIGHTS, DESCRIPTION)))
    if merge.new_rows:
        merge_with_new_rows(merge, base, adapter, folder)
        return
    with unfinished_until_published(folder) as unfinished:
        differences = merge_files(merge.weights, merge.changes, unfinished, known)
        report(differences.values(), num_tensors=len(merge.weights), adapter=adapter)
        others = hash_files(copy_others(merge, base, adapter, unfinished), lambda _: None)
        if count_parameters(merge.shape).total > MAX_PARAMETERS_BESIDE:
            logger.info(TOO_LARGE)
        else:
            check_result(merge, base, adapter, unfinished)
        digests = {name: difference.sha256 for name, difference in differences.items()}
        publish_summed(folder, digests | others)
    logger.info("merged into %s", folder)


def merge_with_new_rows(merge: Merge, base: Path, adapter: Path, folder: Path) -> None:
    """Write a merged model whose embedding and head have other rows, and maybe more, than the base.

    Raises:
        CheckpointError: the base's files are not what was written.
        ServeError: the merged model computes something else than base and adapter.
    """
    weights = SafetensorsFolder(merge.weights)
    check_sums(sorted({location.file for location in merge.weights.values()}))
    source = ChangedWeights(weights, merge.changes, new_rows=merge.new_rows)
    written = WrittenParts()
    with unfinished_until_published(folder) as unfinished:
        copy_others(merge, base, adapter, unfinished)
        create_weight_files(unfinished, Release(shape=merge.shape, dtype=weights.dtype))
        locations = read_locations(unfinished)
        num_bytes = sum(location.num_bytes for location in locations.values())
        with show_progress("merging", num_bytes) as advance:
            write_weights(source, locations, advance, written)
        if count_parameters(merge.shape).total > MAX_PARAMETERS_BESIDE:
            logger.info(TOO_LARGE)
        else:
            check_result(merge, base, adapter, unfinished)
        files = sorted(unfinished.iterdir())
        publish_summed(folder, hash_files(files, lambda _: None, written.by_name))
    num_rows = sum(len(rows.indices) for rows in merge.new_rows.values())
    logger.info("merged into %s, with %d rows of new tokens", folder, num_rows)


@dataclass(frozen=True, slots=True)
class ChangedWeights:
    """The base as an adapter changes it, in float32, not rounded to the base's dtypes."""

    base: LocatedSource
    changes: dict[str, Change]
    reader: ChangeReader = field(default_factory=ChangeReader)
    new_rows: dict[str, NewRows] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)  # of the reader, which several threads use

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
        if tensor.name in self.new_rows:
            return self._read_rows(tensor, start, stop)
        if tensor.name not in self.changes:
            return self.base.read(tensor, start, stop)
        width = tensor.shape[1]
        first, last = start // width, -(-stop // width)
        before = self.base.read(tensor, first * width, last * width).view(-1, width).float()
        with self.lock:
            after = self.reader.apply(self.changes[tensor.name], before, first)
        return after.flatten()[start - first * width : stop - first * width]

    def _read_rows(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """The same of a matrix with new rows, of which only the rows in question are read."""
        rows, width = self.new_rows[tensor.name], tensor.shape[1]
        first, last = start // width, -(-stop // width)
        edge = min(last, self.base.locations[tensor.name].shape[0])
        values = torch.empty(last - first, width)
        if first < edge:
            before = self.base.read(tensor, first * width, edge * width)
            values[: edge - first] = before.view(-1, width)
        for position, row in enumerate(rows.indices):
            if first <= row < last:
                new = read_range(rows.location, position * width, (position + 1) * width)
                values[row - first] = new
        return values.flatten()[start - first * width : stop - first * width]


def check_result(merge: Merge, base: Path, adapter: Path, folder: Path) -> None:
    """Compare what the merged model computes with base and adapter.

    PEFT puts them together, but for adapters of single experts: Transformers holds all experts of a
    layer as one, so those can only be put together here.

    Raises:
        ServeError: it computes something else, or the same as the base alone.
    """
    shape, is_exact = merge.shape, largest(merge.weights).dtype == "F32"
    if not merge.has_single_experts:
        check_merged(base, adapter, folder, shape, base_shape=read_shape(base), is_exact=is_exact)
        return
    batch, source = make_prompts(shape), SafetensorsFolder(merge.weights)
    before = plain_losses(load_source(shape, source), batch)
    changed = ChangedWeights(source, merge.changes)
    after = check_effect(before, plain_losses(load_source(shape, changed), batch), adapter)
    compare_merged(before, after, folder, shape, is_exact=is_exact)


def copy_others(merge: Merge, base: Path, adapter: Path, folder: Path) -> list[Path]:
    """Copy what lies beside the base's weights, and complete it as an export does.

    Returns:
        the files that lie in the folder beside the weights.
    """
    copy_files(merge.others, folder)
    try:
        words = add_stored(load_tokenizer(base), adapter)
    except DataError as error:
        logger.warning("the tokenizer's files are merged as they are: %s", error)
        words = None
    dtype = SafetensorsFolder(merge.weights).dtype
    complete_files(folder, merge.shape, dtype, base=read_config(base), words=words)
    write_manifest(folder, base)
    return sorted(file for file in folder.iterdir() if not file.match(f"*{SUFFIX}"))


def merge_files(
    locations: dict[str, TensorLocation],
    changes: dict[str, Change],
    folder: Path,
    known: Mapping[str, str],
) -> dict[str, Difference]:
    """Merge every weight file of the base, several at a time; a failure or Ctrl-C ends all.

    Args:
        locations: of the base's tensors.
        changes: by tensor.
        folder: to write to.
        known: digests of the base's files by name, as its folder keeps them.

    Raises:
        CheckpointError: see `merge_file`.
    """
    files = sorted({location.file for location in locations.values()})
    is_ended = Event()
    with show_progress("merging", sum(file.stat().st_size for file in files)) as advance:

        def merge(file: Path) -> Difference:
            segments = takewhile(
                lambda _: not is_ended.is_set(), cut_file(file, locations, changes)
            )
            is_known = file.name in known
            difference = merge_file(
                file, folder / file.name, segments, changes, advance, is_known=is_known
            )
            if is_known and not is_ended.is_set():
                check_digest(file, difference.original_sha256, known)
            return difference

        with ThreadPoolExecutor(min(num_threads(), num_files_in_memory(changes))) as pool:
            names = [file.name for file in files]
            try:
                return dict(zip(names, pool.map(merge, files), strict=True))
            finally:
                is_ended.set()  # all is done, or nobody waits for the rest


def num_files_in_memory(changes: dict[str, Change]) -> int:
    """Files that may be merged at once, given the matrices that each of them keeps at hand."""
    largest = max(change.matrix_b.num_bytes for change in changes.values())
    return max(1, MATRIX_BYTES // (largest * ChangeReader.NUM_KEPT))


def cut_file(
    file: Path, locations: dict[str, TensorLocation], changes: dict[str, Change]
) -> Iterator[Segment]:
    """Cut a file, first byte to last, into blocks of rows of changed tensors and of the rest."""
    position = 0
    inside = [(locations[name], name) for name in changes if locations[name].file == file]
    for location, name in sorted(inside, key=lambda item: item[0].byte_offset):
        yield from _unchanged(position, location.byte_offset)
        num_rows = location.shape[0]
        row_bytes = location.num_bytes // num_rows
        step = max(1, BLOCK_BYTES // row_bytes // ROWS_TOGETHER) * ROWS_TOGETHER
        for row in range(0, num_rows, step):
            start = location.byte_offset + row * row_bytes
            stop = start + min(step, num_rows - row) * row_bytes
            yield Segment(start, stop, name, location, row)
        position = location.byte_offset + location.num_bytes
    yield from _unchanged(position, file.stat().st_size)


def _unchanged(start: int, stop: int) -> Iterator[Segment]:
    for position in range(start, stop, BLOCK_BYTES):
        yield Segment(position, min(position + BLOCK_BYTES, stop))


def merge_file(
    original: Path,
    merged: Path,
    segments: Iterable[Segment],
    changes: dict[str, Change],
    advance: Callable[[int], None],
    *,
    is_known: bool,
) -> Difference:
    """Write one file, and compare it with its original on the way.

    Args:
        original: the base's file.
        merged: to be written.
        segments: of the file, from its first byte to its last.
        changes: by tensor.
        advance: told the bytes of each segment.
        is_known: what the checksum of the original has to be.

    Raises:
        CheckpointError: a merged weight is not finite.
    """
    original_digest, digest = hashlib.sha256(), hashlib.sha256()
    difference, reader = Difference(), ChangeReader()
    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
        PastCache(merged) as target,
    ):
        sum_read = SumBeside(original_digest, reading, most_pending=SUMS_PENDING)
        sum_written = SumBeside(digest, writing, most_pending=SUMS_PENDING)
        for segment in segments:
            values = read_segment(original, segment)
            if is_known:
                sum_read.update(bytes_of(values))
            if segment.location is not None:
                before = values.view(-1, segment.location.shape[1])
                values = reader.apply(changes[segment.name], before, segment.first_row)
                difference.add(segment.name, before, values)
            content = bytes_of(values)
            sum_written.update(content)
            target.write(segment.start, content)
            advance(segment.stop - segment.start)
        target.sync()
        sum_read.finish()
        sum_written.finish()
    difference.sha256 = digest.hexdigest()
    difference.original_sha256 = original_digest.hexdigest() if is_known else ""
    return difference


def read_segment(file: Path, segment: Segment) -> Tensor:
    """Read a segment: flat, in the dtype of its tensor, or as bytes."""
    dtype = segment.location.dtype if segment.location else "U8"
    size = (segment.stop - segment.start) // ITEMSIZES[dtype]
    return read_range(TensorLocation(file, segment.start, dtype, (size,)), 0, size)


def report(differences: Iterable[Difference], *, num_tensors: int, adapter: Path) -> None:
    """Say what was changed.

    Raises:
        CheckpointError: nothing was.
    """
    num_changed: dict[str, int] = {}
    largest = 0.0
    for difference in differences:
        num_changed |= difference.num_changed
        largest = max(largest, difference.largest)
    unchanged = sorted(name for name, number in num_changed.items() if not number)
    if len(unchanged) == len(num_changed):
        raise CheckpointError(
            f"{adapter} changes none of the {len(num_changed)} tensors it names: what it adds is "
            "zero, or less than their dtype can hold; train it further"
        )
    if unchanged:
        text = "%d of %d named tensors are unchanged, as what is added is zero or too small: %s"
        logger.warning(text, len(unchanged), len(num_changed), ", ".join(unchanged[:3]))
    logger.info(
        "changed %s elements of %d tensors, by up to %.2e; the other %d are the base's bytes",
        f"{sum(num_changed.values()):,}",
        len(num_changed) - len(unchanged),
        largest,
        num_tensors - len(num_changed),
    )
