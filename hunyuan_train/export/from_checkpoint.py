"""Export from a stopped run: its checkpoint in, a model folder out, on one machine without a GPU.

Whatever split wrote the checkpoint, it reads as one model, piece by piece; no process group and no
engine is needed, and memory for a few pieces.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.checkpoint.one_pass import Stretch, plan_stretches
from hunyuan_train.checkpoint.publish import (
    check_sums,
    hash_files,
    num_threads,
    publish_summed,
    unfinished_until_published,
)
from hunyuan_train.checkpoint.read_back import WrittenParts
from hunyuan_train.checkpoint.resharding import CheckpointTensors, open_tensors
from hunyuan_train.checkpoint.run_folder import find_newest, read_settings
from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.export.check import (
    MAX_PARAMETERS_BESIDE,
    TOO_LARGE,
    Trained,
    check_model,
    load_source,
    make_prompts,
    plain_losses,
    run_adapter,
)
from hunyuan_train.export.huggingface_folder import (
    create_release,
    describe_release,
    read_locations,
    trained_dtype,
    write_adapter,
    write_piece,
    write_weights,
)
from hunyuan_train.export.served_tokenizer import write_new_tokens
from hunyuan_train.export.whole_files import WholeFiles, summed_beside
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.find_model import find_model
from hunyuan_train.model.safetensors_header import TensorLocation
from hunyuan_train.model.weights import WeightSource, downloaded_part
from hunyuan_train.optim.records import MASTER
from hunyuan_train.past_cache import PastCache
from hunyuan_train.progress import show_progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedRun:
    """A run on disk, at one of its checkpoints."""

    config: RunConfig
    shape: ModelShape
    base: WeightSource
    trained: CheckpointTensors
    manifest: dict[str, Any]  # of the checkpoint

    def plan(self) -> tuple[list[Stretch], int]:
        """What is read of the checkpoint, and how many bytes that are."""
        stretches = plan_stretches(self.trained, self.manifest)
        return stretches, sum(one.stop - one.start for one in stretches)


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """The model after training: the checkpoint's weights, the base's where none were trained."""

    trained: CheckpointTensors
    base: WeightSource

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
        is_trained = tensor.name in self.trained.tensors
        return (self.trained if is_trained else self.base).read(tensor, start, stop)


def open_stopped_run(folder: Path, moved: dict[str, str]) -> StoppedRun:
    """Find out what a checkpoint belongs to.

    Args:
        folder: a checkpoint, or a run, of which it takes the newest.
        moved: settings of the run that have changed since, such as where its model lies.

    Raises:
        CheckpointError: no complete checkpoint there, or no run around it.
    """
    checkpoint = find_newest(folder)
    config = read_settings(checkpoint, moved)
    shape, base = find_model(config.model, read_tokenizer(config), seed=config.train.seed)
    manifest = read_manifest(checkpoint)
    trained = open_tensors(checkpoint, manifest, family_of(shape))[MASTER]
    trained.check_whole()
    logger.info("exporting %s (%s)", checkpoint, config.model.model_name_or_path)
    return StoppedRun(config=config, shape=shape, base=base, trained=trained, manifest=manifest)


def read_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer of a run."""
    return load_tokenizer(tokenizer_folder(config.model), config.model.add_tokens)


def export_stopped_run(run: StoppedRun, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the model of a stopped run, or its adapter, as servers load it.

    Args:
        run: at the checkpoint to export.
        folder: the final folder; it appears, or is replaced, only once it is whole.
        dtype: of the weights; by default that of the weights the run started from, of an adapter
            that of the run.
    """
    written = WrittenParts()
    with unfinished_until_published(folder) as unfinished, summed_beside(written) as whole:
        if run.config.lora.use_lora:
            _write_stopped_adapter(run, unfinished, dtype)
        else:
            _write_stopped_model(run, unfinished, dtype, written, whole)
        files = sorted(unfinished.iterdir())
        with show_progress("summing", sum(file.stat().st_size for file in files)) as advance:
            others = [file for file in files if file not in whole.sums]
            digests = hash_files(others, advance, written.by_name) | whole.wait(advance)
        publish_summed(folder, digests)
    logger.info("exported %s", folder)


def _write_stopped_model(
    run: StoppedRun,
    folder: Path,
    dtype: torch.dtype | None,
    written: WrittenParts,
    whole: WholeFiles,
) -> None:
    source = TrainedWeights(run.trained, run.base)
    release = describe_release(run.config, run.shape, run.base)
    if dtype:
        release = replace(release, dtype=dtype)
    create_release(folder, release)
    locations = read_locations(folder)
    frozen = {name: one for name, one in locations.items() if name not in run.trained.tensors}
    verify_base(run.base, frozen)
    size = run.plan()[1] + sum(one.num_bytes for one in frozen.values())
    with show_progress("writing", size) as advance:
        write_trained(run, locations, advance, written, whole)
        write_weights(run.base, frozen, advance, written)
    if count_parameters(run.shape).total > MAX_PARAMETERS_BESIDE:
        logger.info(TOO_LARGE)
        return
    batch = make_prompts(run.shape)
    losses = plain_losses(load_source(run.shape, source), batch)
    is_exact = release.dtype == torch.float32
    check_model(Trained(run.shape, batch, losses, is_exact), folder)


def verify_base(base: WeightSource, frozen: dict[str, TensorLocation]) -> None:
    """Sum the files that frozen tensors come from, where the base's folder has checksums.

    Raises:
        CheckpointError: one is not what was written.
    """
    if folder := downloaded_part(base):
        files = sorted({folder.locations[name].file for name in frozen})
        check_sums([*files, *(file.with_name("config.json") for file in files[:1])])


def write_trained(
    run: StoppedRun,
    locations: dict[str, TensorLocation],
    advance: Callable[[int], None],
    written: WrittenParts,
    whole: WholeFiles,
) -> None:
    """Copy what was trained into a created folder, several tensors of the checkpoint at a time.

    They come in the order in which the folder has them, so that its files are soon whole.

    Args:
        run: at the checkpoint.
        locations: of the created folder.
        advance: told the bytes that are read.
        written: learns what is written.
        whole: sums the files that nothing else is written to.

    Raises:
        CheckpointError: a file is damaged, or of another model.
    """
    for name, tensor in run.trained.tensors.items():
        if name not in locations or locations[name].shape != tensor.shape:
            raise CheckpointError(
                f"{run.trained.folder} holds {name} as {list(tensor.shape)}, which the run's model "
                "does not have; it is of another model: give the one it was trained from with "
                "--model_name_or_path"
            )
    is_ended = Event()
    whole.expect(locations.values())

    def place(stretch: Stretch) -> tuple[Path, int]:
        tensor, fragment = stretch.fragments[0]
        location = locations[tensor.name]
        return location.file, location.byte_of(fragment.start)

    def copy(stretch: Stretch) -> None:
        pieces = takewhile(lambda _: not is_ended.is_set(), stretch.read(advance))
        for path, inside in groupby(pieces, lambda one: locations[one[0].tensor.name].file):
            num_bytes = 0
            with PastCache(path) as file:
                for piece, values in inside:
                    write_piece(locations, piece, values, written, file)
                    num_bytes += (piece.stop - piece.start) * locations[piece.tensor.name].itemsize
            whole.add(path, num_bytes)

    with ThreadPoolExecutor(num_threads()) as pool:
        try:
            list(pool.map(copy, sorted(run.plan()[0], key=place)))
        finally:
            is_ended.set()  # all is done, or nobody waits for the rest


def read_trained(run: StoppedRun, dtype: torch.dtype) -> dict[str, Tensor]:
    """What was trained, by stored name, whole: for adapters, which are small.

    Args:
        run: that has ended.
        dtype: of the result, whatever the masters have.

    Returns:
        each tensor in its stored shape, [rows, columns] for adapters, on the CPU.

    Raises:
        CheckpointError: a file is damaged.
    """
    tensors = run.trained.tensors
    found = {name: torch.empty(one.numel, dtype=dtype) for name, one in tensors.items()}
    stretches, num_bytes = run.plan()
    with show_progress("reading", num_bytes) as advance:
        for stretch in stretches:
            for piece, values in stretch.read(advance):
                found[piece.tensor.name][piece.start : piece.stop] = values
    return {name: values.view(tensors[name].shape) for name, values in found.items()}


def _write_stopped_adapter(run: StoppedRun, folder: Path, dtype: torch.dtype | None) -> None:
    adapters = read_trained(run, dtype or trained_dtype(run.config))
    model = run.config.model
    write_adapter(
        folder,
        adapters,
        run.config.lora,
        run.shape,
        base_model=model.model_name_or_path,
        expert_weights=model.expert_weights,
    )
    write_new_tokens(folder, read_tokenizer(run.config).new_tokens)
    if count_parameters(run.shape).total > MAX_PARAMETERS_BESIDE:
        logger.info(TOO_LARGE)
    else:
        run_adapter(load_source(run.shape, run.base), folder, make_prompts(run.shape))
