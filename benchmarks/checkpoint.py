"""What a checkpoint costs: bytes, seconds, and how long training waits.

    python -m benchmarks.checkpoint [--experts 16] [--folder DIR] [--report]

Two ranks train a model of the released layout with AdamW (12 bytes a parameter on disk), experts
split over both. `--ranks 1` on two cores leaves one for saving, as machines of GPUs do. Each figure
is given beside the plain thing, measured in the same run: a save that training waits for, and the
same bytes written to the same disk and synced by nothing but `write`. Steps beside a save are
compared with as many alone and with as many beside `dd`, which writes and reads the same number of
bytes in a process of its own: what that costs, disk and memory take, and no code can save. Steps
of many tokens take several seconds, as they do at the released size; those of few are over before
the states are copied.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.results import add_report_flag, show
from hunyuan_train.checkpoint.background import Saver
from hunyuan_train.checkpoint.folder import checkpoint_folder
from hunyuan_train.checkpoint.resume import choose_checkpoint
from hunyuan_train.checkpoint.state import load_checkpoint
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.interrupt import StopRequest, agree_to_stop
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests import ranks as processes
from tests.batches import make_batch
from tests.engines import small_engine
from tests.measured import Repeated, shape_of_size

NUM_SAVES = 9
BLOCK_BYTES = 2**24


@dataclass
class Measured:
    """Seconds of one rank, of each save."""

    num_bytes: int
    step: list[float]  # without a save anywhere near
    sync: list[float]  # of a save that training waits for
    background: list[float]  # of a save beside training, until it has its name
    stall: list[float]  # that training waited for it
    longer: list[float]  # by which the steps beside it took longer than as many without one
    longer_by_disk: list[float]  # the same beside another process that writes and reads so much
    raw: list[float]  # of writing the same bytes and syncing them
    verify_and_load: float
    agree: float  # of agreeing to go on, a step


def measure(folder: Path, num_experts: int, num_tokens: int, budget: float | str) -> Measured:
    """Train and save, both ways; called by every rank."""
    torch.set_num_threads(1)
    shape = replace(shape_of_size(0.0), num_experts=num_experts)
    num_ranks = int(os.environ["WORLD_SIZE"])
    engine = small_engine(stage=3, expert_size=num_ranks, shape=shape, source=Repeated())
    config = CheckpointConfig(snapshot_gib=budget, save_total_limit=1)
    saver = Saver(engine, None, folder, config, {}, {}, ranks_per_host=num_ranks)
    generator = np.random.default_rng(dist.get_rank())
    batches = [make_batch(generator, [num_tokens // 2] * 2)]
    measured = Measured(0, [], [], [], [], [], [], [], 0.0, 0.0)
    step(engine, batches, saver)
    for number in range(NUM_SAVES):
        measured.step.append(step(engine, batches, saver))
        dist.barrier()
        began = time.perf_counter()
        saver.save(TrainerState(2 * number + 1))
        saver.finish()
        measured.sync.append(time.perf_counter() - began)
        dist.barrier()
        saver.stalled_seconds = 0.0
        saver.save(TrainerState(2 * number + 2))
        beside = [step(engine, batches, saver)]
        measured.stall.append(saver.stalled_seconds)
        while not has_ended(saver):
            beside.append(step(engine, batches, saver))
        saver.finish()
        measured.background.append(saver.seconds_of_last)
        alone = [step(engine, batches, saver) for _ in beside]
        measured.longer.append(sum(beside) - sum(alone))
        path = checkpoint_folder(folder, 2 * number + 2) / f"rank-{dist.get_rank():05d}.safetensors"
        measured.num_bytes = path.stat().st_size
        raw = folder / f"raw-{dist.get_rank()}"
        with exercise_disk(raw, measured.num_bytes):
            beside = [step(engine, batches, saver) for _ in alone]
        measured.longer_by_disk.append(sum(beside) - sum(alone))
        dist.barrier()
        measured.raw.append(write_raw(raw, measured.num_bytes))
    began = time.perf_counter()
    found = choose_checkpoint("auto", folder)
    assert found
    load_checkpoint(engine, *found)
    measured.verify_and_load = time.perf_counter() - began
    measured.agree = time_agreement(engine.device)
    return measured


def step(engine: torch.nn.Module, batches: list[Batch], saver: Saver) -> float:
    began = time.perf_counter()
    train_step(
        engine, SFT, batches, learning_rate=1e-5, wait_before_update=saver.wait_before_update
    )
    return time.perf_counter() - began


def has_ended(saver: Saver) -> bool:
    """Whether the save has ended on every rank: each must take as many steps."""
    assert saver.pending
    ended = torch.tensor(saver.pending.outcome.done())
    dist.all_reduce(ended, dist.ReduceOp.MIN)
    return bool(ended)


@contextmanager
def exercise_disk(path: Path, num_bytes: int) -> Iterator[None]:
    """Let another process write and read as much as a save does, past the page cache as well."""
    block = f"bs={BLOCK_BYTES} status=none"
    write = f'dd if=/dev/zero of="$0" count={-(-num_bytes // BLOCK_BYTES)} oflag=direct {block}'
    read = f'dd if="$0" of=/dev/null iflag=direct {block}'
    with subprocess.Popen(["/bin/sh", "-ec", f'{write}; {read}; rm "$0"', path]) as disk:
        yield
    if disk.returncode:
        raise RuntimeError(f"{path} could not be written past the page cache")


def write_raw(path: Path, num_bytes: int) -> float:
    """Seconds to write bytes and wait until they are on disk; both ranks at once."""
    block = os.urandom(BLOCK_BYTES)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-num_bytes // BLOCK_BYTES)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    dist.barrier()
    return seconds


def time_agreement(device: torch.device) -> float:
    """Seconds that a step spends on agreeing whether to stop."""
    request = StopRequest(0.0, 0.0)
    began = time.perf_counter()
    for _ in range(100):
        agree_to_stop(request, 0.0, device)
    return (time.perf_counter() - began) / 100


def describe(name: str, ranks: list[Measured]) -> list[str]:
    """The figures of one way to save: the median over saves, of the worst rank."""

    def worst(field: str) -> float:
        return max(statistics.median(vars(rank)[field]) for rank in ranks)

    size = sum(rank.num_bytes for rank in ranks)
    sync, raw = worst("sync"), worst("raw")
    resume = max(rank.verify_and_load for rank in ranks)
    return [
        f"| {name}: {size / 1e9:.2f} GB, steps of {worst('step'):.2f} s | seconds "
        "| by a save waited for | by the raw disk |",
        "|---|---:|---:|---:|",
        f"| raw write and sync | {raw:.2f} | {raw / sync:.2f} | 1 |",
        f"| save that training waits for | {sync:.2f} | 1 | {sync / raw:.2f} |",
        f"| save beside training, until published | {worst('background'):.2f} | "
        f"{worst('background') / sync:.2f} | {worst('background') / raw:.2f} |",
        f"| **training waits** | {worst('stall'):.3f} | **{worst('stall') / sync:.3f}** | "
        f"{worst('stall') / raw:.3f} |",
        f"| steps beside it take longer by (shared cores) | {worst('longer'):.2f} | "
        f"{worst('longer') / sync:.2f} | {worst('longer') / raw:.2f} |",
        f"| steps beside as much writing and reading by another process, longer by "
        f"| {worst('longer_by_disk'):.2f} | {worst('longer_by_disk') / sync:.2f} | "
        f"{worst('longer_by_disk') / raw:.2f} |",
        f"| resume: verify every byte and load | {resume:.2f} | {resume / sync:.2f} | "
        f"{resume / raw:.2f} |",
        f"| agreeing whether to stop, every step | {max(one.agree for one in ranks):.5f} | | |",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=16, help="0.06 GB of a checkpoint each")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[2048, 16], help="of each rank and step"
    )
    parser.add_argument("--ranks", type=int, default=2, help="of one thread each")
    parser.add_argument("--folder", type=Path, help="where to work")
    add_report_flag(parser)
    arguments = parser.parse_args()
    processes.TIMEOUT_SECONDS = 3600
    command = " ".join(["python -m benchmarks.checkpoint", *sys.argv[1:]])
    lines = [
        f"## Checkpoints: {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores (shared and "
        f"noisy), torch {version('torch')}, deepspeed {version('deepspeed')}; {arguments.ranks} "
        f"rank(s), experts split over them; median of {NUM_SAVES} saves, worst rank.",
        "",
    ]
    budgets = {"copies in memory": "auto", "no memory for copies": 0.0}
    for num_tokens, (name, budget) in product(arguments.tokens, budgets.items()):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            ranks = processes.run_ranks(
                measure, arguments.ranks, Path(folder), arguments.experts, num_tokens, budget
            )
            lines += describe(name, ranks)
            rmtree(folder, ignore_errors=True)
    text = "\n".join(lines)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
