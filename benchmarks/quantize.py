"""How fast and in how little memory a model is written in FP8, beside a copy of it.

    python -m benchmarks.quantize --gigabytes 2

Both read the model's files, which are put out of the system's memory before.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from hunyuan_train.export.huggingface_folder import Release, create_release
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.quantize.float8_writer import write_float8
from hunyuan_train.quantize.job import Calibration, Job


def make_model(folder: Path, gigabytes: float) -> ModelShape:
    """A model of the released widths with random weights, in files of about 1 GB."""
    shape = replace(A13B, num_hidden_layers=1, num_experts=8, vocab_size=2048, pad_token_id=None)
    shape = replace(shape, eos_token_id=None, eod_token_id=None)
    while count_parameters(shape).total * 2e-9 < gigabytes:
        shape = replace(shape, num_hidden_layers=shape.num_hidden_layers + 1)
    create_release(folder, Release(shape=shape, dtype=torch.bfloat16, companions=()))
    block = (torch.randn(2**22) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().data
    for file in folder.glob("*.safetensors"):
        start = min(one.byte_offset for one in read_header(file).values())
        size = file.stat().st_size
        with file.open("r+b") as stream:
            stream.seek(start)
            while stream.tell() < size:
                stream.write(block[: size - stream.tell()])
            os.fsync(stream.fileno())
    return shape


def forget(folder: Path) -> None:
    """Put a folder's files out of the system's memory."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_copy(source: Path, target: Path) -> float:
    """Seconds of a copy, until it is on disk."""
    forget(source)
    started = time.monotonic()
    shutil.copytree(source, target)
    for file in target.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--strategy", choices=("channel", "block"), default="channel")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        root = Path(name)
        for folder in ("in", "out"):
            (root / folder).mkdir()
        shape = make_model(root / "in", arguments.gigabytes)
        copied = time_copy(root / "in", root / "copy")
        forget(root / "in")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        calibration = Calibration(num_samples=1, python=None)
        job = Job(
            source=root / "in",
            shape=shape,
            output=root / "out",
            type="",
            calibration=calibration,
        )
        write_float8(job, root / "out", Scheme(arguments.strategy))
        seconds = time.monotonic() - started
        size = sum(file.stat().st_size for file in (root / "in").iterdir())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {
            "gigabytes": size / 1e9,
            "seconds": seconds,
            "copy_seconds": copied,
            "speed_by_copy": copied / seconds,
            "memory_taken_megabytes": (peak - before) / 1e3,
            "peak_megabytes": peak / 1e3,
        }
        json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
