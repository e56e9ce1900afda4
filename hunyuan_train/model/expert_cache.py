"""Codes of quantised experts, kept on disk for the next start.

A folder is named by what its codes were made of: the base, the form, the dtype. Its files are of
safetensors, one for each set of experts that a rank had, and each tensor has a digest over that
description, its name, its codes and its scales. So what is damaged, and what was brought from
another folder, is seen where it is read, and made anew. A base whose files were changed so that
its identity does not tell is seen by comparing a few experts with the base itself.
"""

import fcntl
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.base_folder import identify_weights
from hunyuan_train.model.compressed_values import FLOAT8
from hunyuan_train.model.compression_scheme import SCALE, Scheme
from hunyuan_train.model.expert_codes import ExpertCodes, QuantisedOnReading
from hunyuan_train.model.safetensors_files import create_header, read_range
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.progress import show_progress
from hunyuan_train.whole_file import make_folders, open_lock, open_whole

logger = logging.getLogger(__name__)

VERSION = 1  # of the codes that are made of a weight; another one when these change
DIGESTS = "digests"  # [tensors of the file, 32], in the order in which they lie there
DIGEST_BYTES = 32
NUM_COMPARED = 32  # of a rank's tensors, made anew at each start: of A13B's 6,144 half a percent

Codes = tuple[StoredTensor, Tensor, Tensor]  # a weight, its codes and its scales
Place = tuple[TensorLocation, TensorLocation, TensorLocation, int]


class CachedExperts:
    """Codes as a folder keeps them, where it has them whole, and else as they are made."""

    def __init__(self, fresh: ExpertCodes, cache_dir: Path, origin: Sequence[str]) -> None:
        """Look at what is kept.

        Args:
            fresh: makes codes of the base.
            cache_dir: holds the folders of all bases.
            origin: tells the base and how its weights are read.
        """
        self.fresh = fresh
        self.origin = json.dumps([VERSION, fresh.scheme.title, *origin])
        key = hashlib.sha256(self.origin.encode()).hexdigest()[:32]
        self.folder = cache_dir / f"{key}.experts"
        self.kept = _locate(self.folder)
        self.bad_files: set[Path] = set()
        self.is_incomplete = False  # something was made anew, and is to be kept

    @property
    def scheme(self) -> Scheme:
        """How they are compressed."""
        return self.fresh.scheme

    def compare(self, tensors: Sequence[StoredTensor]) -> None:
        """Make some experts anew, and forget all that is kept if they are others.

        Args:
            tensors: of this rank.
        """
        for tensor in tensors[:: len(tensors) // NUM_COMPARED + 1]:
            kept = self._read(tensor)
            if kept is None:
                continue
            made = self.fresh.read_experts(tensor)
            if not all(map(_is_same, kept, made)):
                logger.warning(
                    "%s holds experts of another base: %s is not what this base gives; they are "
                    "made anew and replace it",
                    *(self.folder, tensor.name),
                )
                self.bad_files |= {one.file for one, *_ in self.kept.values()}
                self.kept = {}
                return

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert."""
        kept = self._read(tensor)
        if kept is not None:
            return kept
        self.is_incomplete = True
        return self.fresh.read_experts(tensor)

    def _read(self, tensor: StoredTensor) -> tuple[Tensor, Tensor] | None:
        """What is kept of a weight; None where nothing is, or not what was written."""
        if tensor.name not in self.kept:
            return None
        places = self.kept[tensor.name]
        parts = self._read_whole(tensor, places)
        if parts is None:
            file = places[0].file
            if file not in self.bad_files:
                logger.warning(
                    "%s is damaged, or of another base: %s is not what was written there; such "
                    "experts are made anew and replace it",
                    *(file, tensor.name),
                )
            self.bad_files.add(file)
            del self.kept[tensor.name]
        return parts

    def _read_whole(self, tensor: StoredTensor, places: Place) -> tuple[Tensor, Tensor] | None:
        """Codes and scales, as their digest says they were written; None where it says another."""
        *matrices, digests, row = places
        try:
            codes, scales = (read_range(one, 0, _numel(one)).view(one.shape) for one in matrices)
            digest = read_range(digests, row * DIGEST_BYTES, (row + 1) * DIGEST_BYTES)
        except (OSError, ValueError):
            return None
        if self._digest(tensor, codes, scales) != digest.numpy().tobytes():
            return None
        return codes if self.scheme.is_4bit else codes.view(FLOAT8), scales

    def keep(self, codes: Sequence[Codes]) -> None:
        """Write a rank's codes, unless they were all there; what the disk refuses is a warning.

        Args:
            codes: of all its experts.
        """
        if not self.is_incomplete:
            logger.info("quantised experts read from %s", self.folder)
            return
        names = hashlib.sha256("\n".join(one.name for one, *_ in codes).encode()).hexdigest()[:16]
        path = self.folder / f"{names}.safetensors"
        try:
            make_folders(self.folder)
            with open_lock(path.with_suffix(".lock")) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path in self.bad_files or not path.exists():
                    self._write(path, codes)
                for file in self.bad_files - {path}:
                    file.unlink(missing_ok=True)
        except BlockingIOError:  # a rank that has the same experts writes them
            return
        except OSError as error:
            logger.warning(
                "quantised experts cannot be kept in %s (%s): the next start makes them anew; free "
                "some room, or set cache_dir to another disk",
                *(self.folder, error.strerror),
            )
            return
        logger.info("quantised experts are kept in %s", self.folder)

    def _write(self, path: Path, codes: Sequence[Codes]) -> None:
        """Write a file that appears whole, one weight in memory at a time; digests come last."""
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for tensor, values, scales in codes:
            layout[tensor.name] = (values.dtype, tuple(values.shape))
            layout[tensor.name + SCALE] = (scales.dtype, tuple(scales.shape))
        layout[DIGESTS] = (torch.uint8, (len(codes), DIGEST_BYTES))
        size = sum(values.nbytes + scales.nbytes for _, values, scales in codes)
        digests = b""
        with (
            open_whole(path, is_ours=True) as file,
            show_progress("keeping quantised experts", size) as advance,
        ):
            file.write(_bytes_of(create_header(layout)))
            for tensor, values, scales in codes:
                kept = values.cpu(), scales.cpu()
                digests += self._digest(tensor, *kept)
                for part in kept:
                    file.write(_bytes_of(part))
                    advance(part.nbytes)
            file.write(digests)

    def _digest(self, tensor: StoredTensor, codes: Tensor, scales: Tensor) -> bytes:
        digest = hashlib.sha256(f"{self.origin}\n{tensor.name}\n".encode())
        for part in (codes, scales):
            digest.update(_bytes_of(part))
        return digest.digest()


def with_cache(
    codes: ExpertCodes | None, config: ModelConfig, cache_dir: Path, dtype: torch.dtype
) -> ExpertCodes | None:
    """Keep codes on disk, where they are made of a folder's weights and it is asked for.

    Args:
        codes: where they come from.
        config: of the model.
        cache_dir: holds the folders of all bases.
        dtype: of training, to which weights are rounded before their codes are made.
    """
    base = config.model_name_or_path
    is_made = isinstance(codes, QuantisedOnReading) and base not in PRESETS
    if codes is None or not is_made or not config.cache_expert_weights:
        return codes
    return CachedExperts(codes, cache_dir, (identify_weights(base), str(dtype)))


def _locate(folder: Path) -> dict[str, Place]:
    """Where each kept weight's codes, scales and digest lie, and the digest's row."""
    found: dict[str, Place] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            header = read_header(file)
            digests = header.pop(DIGESTS)
            names = [name for name in header if name + SCALE in header]
            places = {
                name: (header[name], header[name + SCALE], digests, row)
                for row, name in enumerate(names)
            }
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s is damaged (%s): such experts are made anew", file, error)
            file.unlink(missing_ok=True)
            continue
        found |= places
    return found


def _numel(location: TensorLocation) -> int:
    return location.num_bytes // location.itemsize


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bytes(_bytes_of(one.cpu())) == bytes(_bytes_of(other.cpu()))


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
