"""What reading and writing weights costs: bytes, seconds, and memory at its peak."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hunyuan_train.config.schema import LoraConfig, ModelConfig, RunConfig
from hunyuan_train.export import huggingface_folder as release
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model
from hunyuan_train.export.huggingface_folder import (
    Release,
    create_release,
    read_locations,
    write_weights,
)
from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters, released_tensors
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model import compressed_weights, weights
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.compression_scheme import CONFIG, Scheme, describe_scheme, is_compressed
from hunyuan_train.model.find_model import open_base
from hunyuan_train.model.safetensors_files import DTYPES, create_file, write_range
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.parallel import assemble
from hunyuan_train.parallel.assemble import build_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.parallel.quantised_experts import local_experts
from hunyuan_train.parallel.zero import weight_shards, weight_values
from tests.engines import small_engine
from tests.released import SHAPE

STATUS = Path("/proc/self/status")


def shape_of_size(gigabytes: float) -> ModelShape:
    """A model that takes about this many bytes in bfloat16, 0.6 GB a layer.

    As in the released model, a rank's experts of a layer are larger than the 32 MB up to which
    glibc keeps freed memory for itself; below, memory that is free would count as taken.
    """
    wide = replace(
        SHAPE,
        vocab_size=16384,
        hidden_size=1024,
        intermediate_size=1536,
        num_attention_heads=8,
        head_dim=128,
        num_experts=64,
        moe_topk=8,
        num_hidden_layers=1,
    )
    two_layers = count_parameters(replace(wide, num_hidden_layers=2)).total
    layer = two_layers - count_parameters(wide).total
    return replace(wide, num_hidden_layers=max(1, round(gigabytes * 1e9 / 2 / layer)))


class Repeated:
    """Random weights that cost nothing to make: the same block over and over."""

    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        return self.block.repeat(-(-(stop - start) // len(self.block)))[: stop - start]


def write_base(folder: Path, shape: ModelShape, file_bytes: int = 10**9) -> None:
    """Write a released folder of any size in bfloat16, in such files, without holding it."""
    folder.mkdir(parents=True)
    usual, release.MAX_FILE_BYTES = release.MAX_FILE_BYTES, file_bytes
    create_release(folder, Release(shape=shape, dtype=torch.bfloat16, companions=()))
    release.MAX_FILE_BYTES = usual
    write_weights(Repeated(), read_locations(folder), lambda _: None)


def write_float8_base(plain: Path, folder: Path, shape: ModelShape) -> None:
    """Write a folder like a plain one, in FP8 by channel, whose weights are all 1."""
    folder.mkdir()
    scheme, stored = Scheme("channel"), {}
    for tensor in released_tensors(shape).values():
        dtype = "F32" if tensor.kind is Kind.ROUTER else "BF16"
        is_whole = not is_compressed(tensor)
        stored |= {tensor.name: (dtype, tensor.shape)} if is_whole else scheme.stored(tensor, dtype)
    file = folder / "model.safetensors"
    create_file(file, {name: (DTYPES[dtype], size) for name, (dtype, size) in stored.items()})
    for location in read_header(file).values():
        write_range(location, 0, torch.ones(prod(location.shape)))
    config = json.loads((plain / "config.json").read_text())
    config[CONFIG] = describe_scheme(scheme, ["lm_head"])
    (folder / "config.json").write_text(json.dumps(config))


@dataclass
class Peak:
    """Resident memory of this process, in bytes."""

    before: int
    highest: int = 0

    @property
    def rise(self) -> int:
        return self.highest - self.before


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Measure how far this process's memory rises inside."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    peak = Peak(_status("VmRSS"))
    yield peak
    peak.highest = _status("VmHWM")


def _status(field: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


@dataclass
class Load:
    """How one rank took its part of a released folder."""

    num_read: int  # bytes
    num_owned: int  # bytes in the folder of what it keeps
    peak_beside: int  # bytes, at the peak, beside what it keeps
    seconds: float
    seconds_raw: float  # of reading the same bytes and nothing else


class _LoadedError(Exception):
    """The weights are in: no optimizer is wanted."""


def bfloat16_settings(expert_size: int) -> dict[str, Any]:
    """What the engine is told of a bfloat16 run whose experts are split over so many ranks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "overlap_comm": False},
        "expert_parallel": {
            "enabled": True,
            "preset_model": "hunyuan_v1_moe",
            "autoep_size": expert_size,
        },
    }


def load(folder: Path, expert_size: int, expert_weights: str = "bf16") -> Load:
    """Load a folder as a rank of a bfloat16 run does, up to the optimizer; called by every rank."""
    torch.set_num_threads(1)
    start_process_group(timeout_minutes=5)
    shape = resolve_base(str(folder))
    ranges: list[tuple[TensorLocation, int, int]] = []
    read_range, times = weights.read_range, [0.0, 0.0]

    def note_range(location: TensorLocation, start: int, stop: int) -> Tensor:
        times[0] = times[0] or time.perf_counter()
        ranges.append((location, start, stop))
        return read_range(location, start, stop)

    def stop(model: nn.Module) -> Any:
        times[1] = time.perf_counter()
        raise _LoadedError(model)

    settings = bfloat16_settings(expert_size)
    weights.read_range = compressed_weights.read_range = note_range
    assemble.optimizer_factory = lambda *_, **__: stop
    with watch_memory() as peak:
        source = open_base(folder, shape)
        try:
            config = RunConfig(model=ModelConfig(expert_weights=expert_weights))
            build_engine(config, settings, shape, source, attention=PER_DOCUMENT)
        except _LoadedError as loaded:
            [model] = loaded.args
    weights.read_range = compressed_weights.read_range = read_range
    shards = list(weight_shards(model))
    num_kept = sum(weight_values(shard).numel() * 2 for shard in shards)
    num_kept += sum(one.nbytes for one in model.buffers() if one.dim() == 3)  # codes and scales
    owned = [(one.stored[0].name, one.stop - one.start) for one in shards]
    owned += [(tensor.name, tensor.numel) for *_, tensor in local_experts(model)]
    dist.barrier()
    return Load(
        num_read=sum(_num_bytes(*one) for one in ranges),
        num_owned=sum(numel * source.locations[name].itemsize for name, numel in owned),
        peak_beside=peak.rise - num_kept,
        seconds=times[1] - times[0],
        seconds_raw=_read_raw(ranges),
    )


def _num_bytes(location: TensorLocation, start: int, stop: int) -> int:
    return (stop - start) * location.itemsize


def _read_raw(ranges: list[tuple[TensorLocation, int, int]]) -> float:
    """Seconds to read ranges of files into one buffer."""
    buffer = bytearray(max(_num_bytes(*one) for one in ranges))
    started = time.perf_counter()
    for location, start, stop in ranges:
        with location.file.open("rb", buffering=0) as file:
            file.seek(location.byte_offset + start * location.itemsize)
            file.readinto(memoryview(buffer)[: _num_bytes(location, start, stop)])
    return time.perf_counter() - started


def largest_tensor(folder: Path) -> int:
    """Bytes of the largest tensor of a folder."""
    return max(prod(one.shape) * one.itemsize for one in read_locations(folder).values())


@dataclass
class Copy:
    """What writing a folder took."""

    seconds: float  # until it is on disk
    cpu_seconds: float  # of this process
    rise: int  # bytes of memory above what the process held before
    highest: int  # bytes of memory, libraries included


@contextmanager
def _watch_copy(found: list[Copy]) -> Iterator[None]:
    """Measure what is done inside, into a list."""
    with watch_memory() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    found.append(Copy(seconds, cpu_seconds, peak.rise, peak.highest))


def export_run(run: Path, output: Path, file_bytes: int = release.MAX_FILE_BYTES) -> Copy:
    """Export a stopped run in this process, in files of so many bytes."""
    torch.set_num_threads(1)
    release.MAX_FILE_BYTES = file_bytes
    found: list[Copy] = []
    with _watch_copy(found):
        export_stopped_run(open_stopped_run(run, {}), output)
    return found[0]


def export_live(output: Path, gigabytes: float, file_bytes: int = release.MAX_FILE_BYTES) -> Copy:
    """Export from a running engine, in files of so many bytes; called by every rank."""
    torch.set_num_threads(1)
    release.MAX_FILE_BYTES = file_bytes
    shape, num_ranks = shape_of_size(gigabytes), int(os.environ["WORLD_SIZE"])
    engine = small_engine(
        stage=3, expert_size=num_ranks, shape=shape, source=Repeated(), optimizer="sgd"
    )
    release_of = Release(shape=shape, dtype=torch.bfloat16)
    dist.barrier()
    found: list[Copy] = []
    with _watch_copy(found):
        fault = export_model(engine, output, release_of, Repeated())
    assert fault is None, fault
    return found[0]


def merge(base: Path, adapter: Path, output: Path) -> Copy:
    """Merge an adapter in this process."""
    torch.set_num_threads(1)
    found: list[Copy] = []
    with _watch_copy(found):
        merge_adapter(base, adapter, output)
    return found[0]


def write_adapter(folder: Path, shape: ModelShape, lora: LoraConfig) -> None:
    """Write a random adapter as a run of ours exports it."""
    adapters = {}
    for name, tensor in released_tensors(shape).items():
        if ".self_attn." in name and "_proj." in name:
            rows, columns = tensor.shape
            prefix = name.removesuffix("weight")
            adapters[f"{prefix}lora_A.default.weight"] = torch.randn(lora.lora_rank, columns)
            adapters[f"{prefix}lora_B.default.weight"] = torch.randn(rows, lora.lora_rank)
    if "experts" in lora.lora_target_modules:
        hidden, width = shape.hidden_size, shape.intermediate_size
        sizes = {"gate_up": (2 * width, hidden), "down": (hidden, width)}
        for layer in range(shape.num_hidden_layers):
            for expert in range(shape.num_experts):
                for kind, (rows, columns) in sizes.items():
                    prefix = f"model.layers.{layer}.mlp.experts.{expert}.{kind}"
                    adapters[f"{prefix}_lora_A.weight"] = torch.randn(lora.lora_rank, columns)
                    adapters[f"{prefix}_lora_B.weight"] = torch.randn(rows, lora.lora_rank)
    folder.mkdir()
    release.write_adapter(folder, adapters, lora, shape, base_model="base")
