"""Write a model in FP8, file by file: each is read once, first byte to last, and written once.

Nothing is calibrated, because servers find the scales of activations anew for each token. So a
block of rows is all that is in memory. The bytes that are read are summed, and must be those that
the source's SHA256SUMS names, where it has one; the bytes that are written are summed too.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import check_digest, check_room, num_threads, read_sums
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.compressed_values import encode_float8, find_scales
from hunyuan_train.model.compression_scheme import BLOCK, Layout, Scheme, is_compressed
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_files import DTYPES, bytes_of, create_header, read_range
from hunyuan_train.model.safetensors_header import ITEMSIZES, TensorLocation
from hunyuan_train.model.weights import is_finite
from hunyuan_train.past_cache import PastCache
from hunyuan_train.progress import show_progress
from hunyuan_train.quantize.job import Job
from hunyuan_train.quantize.model_folder import write_companions, write_index

BLOCK_BYTES = 4 * 2**20  # of rows that are quantised at once; each thread holds about five of them
COPIED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file that belong together: a released tensor, or what is not part of the model."""

    name: str  # "" for a header, and for tied output weights that are stored a second time
    location: TensorLocation  # as bytes where it has no name


def write_float8(job: Job, folder: Path, scheme: Scheme) -> dict[str, str]:
    """Fill a folder with a model's weights in FP8 and all that lies beside them.

    Args:
        job: what is quantised.
        folder: empty.
        scheme: by channel or by block.

    Returns:
        SHA-256 of each file, by name.

    Raises:
        CheckpointError: a weight is not finite, or a file is not what its SHA256SUMS says.
        NoRoomError: the disk is too small.
    """
    locations = locate_weights(job.source, job.shape)
    files = {file: cut_file(file, locations) for file in {one.file for one in locations.values()}}
    layouts = {
        file: lay_out([part for part in parts if part.name], job, scheme)
        for file, parts in files.items()
    }
    check_room(job.output, sum(size_of(layout) for layout in layouts.values()))
    known, is_ended = read_sums(job.source), Event()
    with show_progress("quantizing", sum(file.stat().st_size for file in files)) as advance:

        def write(file: Path) -> tuple[str, str]:
            def go_on(num_bytes: int) -> None:
                if is_ended.is_set():
                    raise InterruptedError("another file failed")
                advance(num_bytes)

            target = folder / file.name
            with SummedFile(target) as written:
                written.write(create_header(typed(layouts[file])))
                digest = write_parts(files[file], written, job, scheme, go_on)
            check_digest(file, digest, known)
            return target.name, written.digest.hexdigest()

        with ThreadPoolExecutor(num_threads()) as pool:
            try:
                digests = dict(pool.map(write, sorted(files)))
            finally:
                is_ended.set()  # all is done, or nobody waits for the rest
    digests |= write_index(folder, {f.name: list(layouts[f]) for f in files}, layouts.values())
    return digests | write_companions(job, folder, scheme)


def typed(layout: dict[str, Layout]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """A layout with torch's dtypes."""
    return {name: (DTYPES[dtype], size) for name, (dtype, size) in layout.items()}


def cut_file(file: Path, locations: dict[str, TensorLocation]) -> list[Part]:
    """A file, first byte to last, as released tensors and the bytes between them."""
    inside = [Part(name, one) for name, one in locations.items() if one.file == file]
    inside.sort(key=lambda part: part.location.byte_offset)
    bounds = [(part.location.byte_offset, part.location.num_bytes) for part in inside]
    starts = [0, *(start + size for start, size in bounds)]
    stops = [*(start for start, _ in bounds), file.stat().st_size]
    gaps = [
        Part("", TensorLocation(file, start, "U8", (stop - start,)))
        for start, stop in zip(starts, stops, strict=True)
    ]
    parts = [gaps[0]]
    for part, gap in zip(inside, gaps[1:], strict=True):
        parts += [part, gap]
    return [part for part in parts if part.location.num_bytes]


def lay_out(parts: list[Part], job: Job, scheme: Scheme) -> dict[str, Layout]:
    """Dtype and shape of each tensor that is written for some parts, in order."""
    known = released_tensors(job.shape)
    layout: dict[str, Layout] = {}
    for part in parts:
        dtype = part.location.dtype
        if is_compressed(known[part.name]):
            layout |= scheme.stored(known[part.name], dtype)
        else:
            layout[part.name] = (dtype, part.location.shape)
    return layout


def size_of(layout: dict[str, Layout]) -> int:
    """Bytes of the tensors of a layout."""
    return sum(torch.Size(size).numel() * ITEMSIZES[dtype] for dtype, size in layout.values())


class SummedFile:
    """A file that is written from first byte to last and summed on the way."""

    def __init__(self, path: Path) -> None:
        self.file = PastCache(path)
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, values: Tensor) -> None:
        """Append a contiguous tensor's bytes."""
        content = bytes_of(values)
        self.digest.update(content)
        self.file.write(self.position, content)
        self.position += len(content)

    def __enter__(self) -> "SummedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.file.sync()
        finally:
            self.file.close()


def write_parts(
    parts: list[Part], written: SummedFile, job: Job, scheme: Scheme, advance: Callable[[int], None]
) -> str:
    """Write all tensors of a file, and return the SHA-256 of what was read.

    Raises:
        CheckpointError: a weight is not finite.
    """
    known, digest = released_tensors(job.shape), hashlib.sha256()
    for part in parts:
        compresses = bool(part.name) and is_compressed(known[part.name])
        scales = []
        for block in read_blocks(part.location, scheme if compresses else None):
            digest.update(block.flatten().view(torch.uint8).numpy().data)
            if compresses:
                scales.append(find_scales(block, scheme))
                written.write(encode_float8(block, scales[-1], scheme).view(torch.uint8))
            elif part.name:
                written.write(block)
            if not is_finite(scales[-1] if compresses else block.flatten()):
                raise CheckpointError(
                    f"{part.name} in {part.location.file} holds NaN or infinity; export an earlier "
                    "checkpoint, or download the model again"
                )
            advance(block.nbytes)
        if compresses:
            written.write(torch.cat(scales))
    return digest.hexdigest()


def read_blocks(location: TensorLocation, scheme: Scheme | None) -> Iterator[Tensor]:
    """Read a tensor in order: whole blocks of rows where it is compressed, else flat pieces."""
    numel = torch.Size(location.shape).numel()
    if scheme is None:
        step = max(1, COPIED_BYTES // location.itemsize)
    else:
        columns = location.shape[1]
        num_rows = max(1, BLOCK_BYTES // (columns * location.itemsize))
        if scheme.strategy == "block":
            num_rows = max(BLOCK, num_rows - num_rows % BLOCK)
        step = num_rows * columns
    for start, stop in pairwise([*range(0, numel, step), numel]):
        values = read_range(location, start, stop)
        yield values if scheme is None else values.view(-1, location.shape[1])
