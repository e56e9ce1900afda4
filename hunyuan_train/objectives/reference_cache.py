"""What a reference says of all answers of a data set: asked once, kept on disk, read by later runs.

The run itself asks, before its first step, with the weights that it begins with. The name of what
is kept is made of the answers' tokens and of the model; ranks and their layout are no part of it.
Answers are judged in blocks, each a file that appears whole, so a run that is killed goes on where
it was. What is read is checked: its sum, and its first values against what the model says now.

The door: `with_reference`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import Batch, DataShard, eval_batches
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.errors import DataError
from hunyuan_train.objectives.log_probabilities import judge
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.whole_file import make_folders, open_whole

logger = logging.getLogger(__name__)

Values = npt.NDArray[np.float64]

BLOCK = 512  # units: pairs, or judged answers
PROBED = 4  # units that are judged again where a cache is read
# How far the same weights may be off in another layout, as a share and in nats: bfloat16 rounds
# each token's loss to one part in 256, and errors of many tokens cancel in part.
MOST_OFF = {"float32": (1e-3, 0.05), "bfloat16": (0.02, 1.0)}
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Judge:
    """The model that judges, and how rows are dealt out for it."""

    engine: deepspeed.DeepSpeedEngine
    shard: DataShard
    group: dist.ProcessGroup | None  # ranks that share a row
    packing: bool


def with_reference(
    dataset: Dataset, by: Judge, identity: dict[str, Any], config: RunConfig, cache_dir: Path
) -> Dataset:
    """The data set with what the reference says of its answers; called by every rank.

    Args:
        dataset: of preferences.
        by: the model as it is before the first step.
        identity: of that model: whatever tells it from others.
        config: of the run.
        cache_dir: where answers are kept.

    Raises:
        DataError: what is kept there is of another model, or cannot be written.
    """
    dtype = "bfloat16" if config.train.bf16 is True else "float32"
    parts = [dataset.summary.fingerprint, identity, dtype, dataset.max_seq_length]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir / f"{key}.reference"
    fill = _Filling(dataset, by, folder, MOST_OFF[dtype])
    found = replace(dataset, reference_logps=fill.values("answers", lambda batch: batch))
    if dataset.is_paired:
        return found
    return replace(found, mismatched_logps=fill.values("mismatched", _take_mismatched))


def _take_mismatched(batch: Batch) -> Batch:
    assert batch.mismatched is not None
    return batch.mismatched


@dataclass(frozen=True, slots=True)
class _Filling:
    """One data set's answers being judged."""

    dataset: Dataset
    by: Judge
    folder: Path
    most_off: tuple[float, float]

    def values(self, name: str, pick: Callable[[Batch], Batch]) -> Values:
        """Log-probability of every sample, [S]: read where it is known, else asked for and kept."""
        size, num_units = self.dataset.unit_size, len(self.dataset) // self.dataset.unit_size
        starts = range(0, num_units, BLOCK)
        known = self._read(name, len(starts))
        found = np.zeros(num_units * size)
        is_new = [block is None for block in known]
        self._probe(known, pick)
        if any(is_new):
            logger.info(
                "the reference judges %d of %d %s before the first step; kept in %s",
                *(sum(is_new) * BLOCK if sum(is_new) < len(starts) else num_units, num_units),
                *("pairs" if self.dataset.is_paired else name, self.folder),
            )
        for number, start in enumerate(starts):
            units = np.arange(start, min(start + BLOCK, num_units))
            values = known[number]
            if values is None:
                values = self._ask(units, pick)
                self._write(name, number, values)
            found[units[0] * size : (units[-1] + 1) * size] = values
        return found

    def _ask(self, units: npt.NDArray[np.int64], pick: Callable[[Batch], Batch]) -> Values:
        """What the model says of some units' samples, on every rank."""
        first, size = int(units[0]) * self.dataset.unit_size, self.dataset.unit_size
        batches = [
            pick(batch)
            for batch in eval_batches(
                self.dataset, self.by.shard, packing=self.by.packing, units=units
            )
        ]
        logps = judge(self.by.engine, batches, self.by.group)
        values = np.zeros(len(units) * size)
        for batch, found in zip(batches, logps, strict=True):
            is_sample = batch.sample_ids >= 0
            values[batch.sample_ids[is_sample] - first] = found[is_sample]
        # Ranks that share a row all know its sums.
        shared = values / self.by.shard.sequence_size
        return np.array(sum_over_ranks(shared.tolist(), self.by.engine.device))

    def _probe(self, known: Sequence[Values | None], pick: Callable[[Batch], Batch]) -> None:
        """Refuse what another model has said.

        Raises:
            DataError: the first values are not what this model says.
        """
        number = next((index for index, one in enumerate(known) if one is not None), None)
        if number is None:
            return
        expected = known[number]
        assert expected is not None
        size = self.dataset.unit_size
        num_units = min(PROBED, len(expected) // size)
        found = self._ask(np.arange(number * BLOCK, number * BLOCK + num_units), pick)
        expected = expected[: len(found)]
        share, nats = self.most_off
        off = np.abs(found - expected)
        if not (off <= share * np.abs(expected) + nats).all():
            raise DataError(
                f"{self.folder} holds log-probabilities of another model: it has "
                f"{expected[off.argmax()]:.2f} where this one says {found[off.argmax()]:.2f}; "
                "delete that folder, and the run asks its own model"
            )
        logger.info("reference log-probabilities read from %s", self.folder)

    def _read(self, name: str, num_blocks: int) -> list[Values | None]:
        """The blocks that are known, rank 0's on every rank: hosts need not share a disk."""
        blocks: list[Any] = [None] * num_blocks
        if dist.get_rank() == 0:
            blocks = [_read_block(self._path(name, number)) for number in range(num_blocks)]
        lists = [blocks]
        dist.broadcast_object_list(lists)
        return lists[0]

    def _write(self, name: str, number: int, values: Values) -> None:
        """Keep a block; that it cannot be kept every rank learns."""
        fault = None
        if dist.get_rank() == 0:
            content = np.ascontiguousarray(values, "<f8").tobytes()
            try:
                make_folders(self.folder)
                with open_whole(self._path(name, number), is_ours=True) as file:
                    file.write(hashlib.sha256(content).digest() + content)
            except OSError as error:
                fault = error.strerror
        faults = [fault]
        dist.broadcast_object_list(faults)
        if faults[0]:
            raise DataError(
                f"what the reference says cannot be written to {self.folder}: {faults[0]}; free "
                "some room, or set cache_dir to another disk"
            )

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:06d}.bin"


def _read_block(path: Path) -> Values | None:
    """A block's values; None where it is not there, or not as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, values = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(values).digest() != digest:
        logger.warning("%s is damaged and is made again", path)
        return None
    return np.frombuffer(values, "<f8").astype(np.float64)
