"""What loading, exporting and merging weights costs beside plain reading and copying.

    python -m benchmarks.weights [--load 4] [--write 8] [--files 8] [--only export merge]
                                 [--from_disk] [--report]

A model of the released layout is generated, in bfloat16 and several files, with true names. What is
read lies in the page cache, into which it is read just before, or with `--from_disk` only on disk,
as a model does that is larger than the memory; what is written counts until it is on disk.
Commands, `cp` of the same folder and plain writing of as many bytes take turns, and of each the
fastest round is compared. So does a bare copy, which does nothing but what a command cannot do
without: it reads, writes and sums as many bytes by SHA-256, which one core does for one file at a
time, and reads back what it wrote where the command does.
"""

import argparse
import hashlib
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree

import torch

from benchmarks.results import add_report_flag, show
from hunyuan_train.checkpoint.publish import hash_files, num_threads
from hunyuan_train.checkpoint.read_back import SumBeside
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export.huggingface_folder import read_locations
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.past_cache import PastCache
from hunyuan_train.whole_file import sync
from tests import ranks
from tests.measured import (
    Copy,
    Repeated,
    export_live,
    export_run,
    largest_tensor,
    load,
    merge,
    shape_of_size,
    write_adapter,
    write_base,
)
from tests.ranks import run_ranks
from tests.released import make_run, write_checkpoint

ROUNDS = 3
BLOCK_BYTES = 2**20
MOST_BEYOND = 2**24  # that a file may have beyond its share: a header, a tensor that ends there
SPLITS = ((2, 2), (2, 1), (4, 4), (4, 2))  # ranks, expert-parallel size
RANK_OF_ADAPTER = 16
ADAPTERS = {"attention": "attention", "attention and every expert": "attention,experts"}

PARTS = ["load", "export", "live", "merge"]

Row = tuple[str, ...]
LOAD_HEAD: Row = (
    "load",
    "bytes read / owned",
    "peak beside own part",
    "GB/s, all ranks",
    "time / raw",
)
COMMAND_HEAD: Row = (
    "command",
    "read + written",
    "time",
    "CPU",
    "cp",
    "its CPU",
    "speed / cp",
    "per byte",
    "with bytes read back",
    "bare copy",
    "speed / bare copy",
    "disk: write, sync + read back",
    "speed / write",
    "speed / write and read back",
    "memory taken",
)


def measure_loads(base: Path) -> list[Row]:
    """Load on several ranks; of each split the worst rank counts."""
    rows = []
    for num_ranks, expert_size in SPLITS:
        loaded = run_ranks(load, num_ranks, base, expert_size)
        seconds = max(rank.seconds for rank in loaded)
        rows.append(
            (
                f"{num_ranks} ranks, experts over {expert_size}",
                f"{max(rank.num_read / rank.num_owned for rank in loaded):.4f}",
                f"{max(rank.peak_beside for rank in loaded) / 1e6:,.0f} MB",
                f"{sum(rank.num_read for rank in loaded) / 1e9 / seconds:.2f}",
                f"{seconds / max(rank.seconds_raw for rank in loaded):.1f}",
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Something that writes a folder."""

    name: str
    work: Callable[[], Copy]
    reads: Path | None = None  # a folder; None for what lies in memory
    num_read: int = 0  # bytes of it
    is_read_back: bool = False  # what it writes


@dataclass(slots=True)
class Plain:
    """Seconds of doing the plain thing."""

    seconds: float
    cpu_seconds: float
    reading_back: float = 0.0


def measure_command(command: Command, output: Path, prepare: Callable[[Path], None]) -> Row:
    """Let a command write a folder, `cp` copy that, and the disk take as many bytes, in turns."""
    copies, plain, bare, disk, num_bytes = [], [], [], [], 0
    for _ in range(ROUNDS):
        if command.reads:
            prepare(command.reads)
        copies.append(command.work())
        num_bytes = folder_size(output)
        prepare(output)
        plain.append(copy_with_cp(output))
        prepare(output)
        if command.reads:
            prepare(command.reads)
        bare.append(copy_barely(output, command))
        rmtree(output)
        disk.append(write_to_disk(output, num_bytes))
    copy = min(copies, key=lambda one: one.seconds)
    cp = min(plain, key=lambda one: one.seconds)
    written = min(one.seconds for one in disk)
    read_back = min(one.reading_back for one in disk)
    ratio, moved = cp.seconds / copy.seconds / (2 * num_bytes), command.num_read + num_bytes
    read_again = num_bytes if command.is_read_back else 0
    return (
        command.name,
        f"{command.num_read / 1e9:.2f} + {num_bytes / 1e9:.2f} GB",
        f"{copy.seconds:.2f} s",
        f"{copy.cpu_seconds:.2f} s",
        f"{cp.seconds:.2f} s",
        f"{cp.cpu_seconds:.2f} s",
        f"{cp.seconds / copy.seconds:.2f}",
        f"{moved * ratio:.2f}" if command.reads else "",
        f"{(moved + read_again) * ratio:.2f}" if command.reads else "",
        f"{min(bare):.2f} s",
        f"{min(bare) / copy.seconds:.2f}",
        f"{written:.2f} + {read_back:.2f} s",
        f"{written / copy.seconds:.2f}",
        f"{(written + read_back) / copy.seconds:.2f}",
        f"{max(one.rise for one in copies) / 1e6:,.0f} MB",
    )


def files_of(folder: Path) -> list[Path]:
    """All files of a folder and of those in it."""
    return [file for file in folder.rglob("*") if file.is_file()]


def folder_size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(file.stat().st_size for file in files_of(folder))


def bring_to_memory(folder: Path) -> None:
    """Read all files, so that the page cache holds them, if it has room."""
    for _ in read_blocks(files_of(folder)):
        pass


def leave_to_disk(folder: Path) -> None:
    """Have all files forgotten by the page cache."""
    for file in files_of(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_blocks(files: Iterable[Path]) -> Iterable[int]:
    """Read files in one buffer; sizes of what is read."""
    buffer = bytearray(BLOCK_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                yield size


def copy_with_cp(folder: Path) -> Plain:
    """Copy a folder until the copy is on disk."""
    copy = folder.with_name("copy")
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "-r", folder, copy], check=True)
    for file in files_of(copy):
        sync(file)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    rmtree(copy)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Plain(seconds, cpu_seconds)


def copy_barely(folder: Path, command: Command) -> float:
    """Seconds of what a command that writes a folder cannot do without, beside its own work."""
    copy = folder.with_name("copy")
    copy.mkdir()
    files = files_of(folder)
    started = time.perf_counter()
    with ThreadPoolExecutor(num_threads()) as pool:
        num_more = command.num_read - folder_size(folder)
        reading = [pool.submit(read_bytes, command.reads, num_more)] if command.reads else []
        is_summed = not command.is_read_back
        list(pool.map(lambda file: copy_summed(file, copy / file.name, is_summed=is_summed), files))
        for one in reading:
            one.result()
    if command.is_read_back:
        hash_files(files_of(copy), lambda _: None)
    seconds = time.perf_counter() - started
    rmtree(copy)
    return seconds


def read_bytes(folder: Path, num_bytes: int) -> None:
    """Read so many bytes of a folder."""
    for size in read_blocks(files_of(folder)):
        num_bytes -= size
        if num_bytes <= 0:
            return


def copy_summed(file: Path, copy: Path, *, is_summed: bool) -> None:
    """Copy a file until the copy is on disk, and sum it on the way, unless that is done later."""
    buffers = [bytearray(BLOCK_BYTES) for _ in range(2)]  # one is read while the other is summed
    with (
        file.open("rb", buffering=0) as stream,
        PastCache(copy) as target,
        ThreadPoolExecutor(1) as pool,
    ):
        digest, position = SumBeside(hashlib.sha256(), pool), 0
        while size := stream.readinto(buffers[0]):
            content = memoryview(buffers[0])[:size]
            if is_summed:
                digest.update(content)
            target.write(position, content)
            position += size
            buffers.reverse()
        digest.finish()
        target.sync()


def write_to_disk(path: Path, num_bytes: int) -> Plain:
    """Write so many bytes until they are on disk, and read them back from there."""
    block = os.urandom(BLOCK_BYTES)
    times, cpu = [time.perf_counter()], time.process_time()
    with path.open("wb", buffering=0) as file:
        for start in range(0, num_bytes, BLOCK_BYTES):
            file.write(block[: num_bytes - start])
        os.fsync(file.fileno())
        times.append(time.perf_counter())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in read_blocks([path]):
        pass
    times.append(time.perf_counter())
    path.unlink()
    return Plain(times[1] - times[0], time.process_time() - cpu, times[2] - times[1])


def measure_commands(
    base: Path,
    folder: Path,
    gigabytes: float,
    names: list[str],
    file_bytes: int,
    prepare: Callable[[Path], None],
) -> list[Row]:
    """Export a stopped run and a live one, and merge two adapters; files of so many bytes."""
    shape = shape_of_size(gigabytes)
    output = folder / "output"
    rows = []
    if "export" in names:
        checkpoint = make_run(folder / "run", base)
        write_checkpoint(checkpoint, shape, Repeated(), num_ranks=4, expert_size=2)
        export = Command(
            name="export of a run stopped on 4 ranks",
            work=lambda: run_ranks(export_run, 1, folder / "run", output, file_bytes)[0],
            reads=checkpoint,
            num_read=folder_size(checkpoint),
            is_read_back=True,
        )
        rows.append(measure_command(export, output, prepare))
        rmtree(folder / "run")
    if "live" in names:
        live = Command(
            name="export of a live run on 2 ranks",
            work=lambda: join_ranks(run_ranks(export_live, 2, output, gigabytes, file_bytes)),
            is_read_back=True,
        )
        rows.append(measure_command(live, output, prepare))
    for name, targets in ADAPTERS.items() if "merge" in names else ():
        lora = LoraConfig(use_lora=True, lora_rank=RANK_OF_ADAPTER, lora_target_modules=targets)
        adapter = folder / targets
        write_adapter(adapter, shape, lora)
        command = Command(
            name=f"merge, adapter on {name}",
            work=lambda adapter=adapter: run_ranks(merge, 1, base, adapter, output)[0],  # type: ignore[misc]
            reads=base,
            num_read=folder_size(base) + folder_size(adapter),
        )
        rows.append(measure_command(command, output, prepare))
    return rows


def join_ranks(ranks: list[Copy]) -> Copy:
    """What a folder took that several ranks wrote: the time of the slowest."""
    slowest = max(ranks, key=lambda one: one.seconds)
    return replace(slowest, cpu_seconds=sum(one.cpu_seconds for one in ranks))


def table(head: Row, rows: list[Row]) -> list[str]:
    """Rows as Markdown."""
    ruler = "|".join(["---", *["---:"] * (len(head) - 1)])
    return [
        f"| {' | '.join(head)} |",
        f"|{ruler}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def describe_run(sizes: list[str], largest: int, load: Sequence[float], place: str) -> list[str]:
    """What was measured, on what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "peft"))
    command = " ".join(["python -m benchmarks.weights", *sys.argv[1:]])
    return [
        f"## Weights: {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, Python {platform.python_version()}, {versions}; load {load[0]:.1f} "
        f"before and {load[1]:.1f} behind. Models in bfloat16: {', '.join(sizes)}; their largest "
        f"tensor has {largest / 1e6:.0f} MB. Read files lie {place}; written ones count until "
        f"they are on disk. The fastest of {ROUNDS} rounds in turns. A live export reads memory; "
        "exports read what they wrote back from the disk, which `per byte` does not count.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", type=float, default=4, metavar="GB", help="size in bfloat16")
    parser.add_argument("--write", type=float, default=8, metavar="GB", help="size in bfloat16")
    parser.add_argument(
        "--files", type=int, default=8, help="of the model written; the released one has 33"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work; six times the size written is needed"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--from_disk", action="store_true", help="not from the page cache")
    add_report_flag(parser)
    arguments = parser.parse_args()
    prepare, place = bring_to_memory, "in the page cache"
    if arguments.from_disk:
        prepare, place = leave_to_disk, "on disk only"
    torch.set_num_threads(1)
    ranks.TIMEOUT_SECONDS = 3600
    load_before, sizes, largest, loads = os.getloadavg()[0], [], 0, []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        base = folder / "base"
        if "load" in arguments.only:
            write_base(base, shape_of_size(arguments.load))
            sizes.append(f"{folder_size(base) / 1e9:.1f} GB to load")
            loads = measure_loads(base)
            rmtree(base)
        shape = shape_of_size(arguments.write)
        file_bytes = 2 * count_parameters(shape).total // arguments.files + MOST_BEYOND
        write_base(base, shape, file_bytes)
        num_files = len({one.file for one in read_locations(base).values()})
        sizes.append(f"{folder_size(base) / 1e9:.1f} GB to write in {num_files} file(s)")
        largest = largest_tensor(base)
        copies = measure_commands(
            base, folder, arguments.write, arguments.only, file_bytes, prepare
        )
    lines = describe_run(sizes, largest, (load_before, os.getloadavg()[0]), place)
    if loads:
        lines += table(LOAD_HEAD, loads)
    if copies:
        lines += table(COMMAND_HEAD, copies)
    text = "\n".join(lines)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
