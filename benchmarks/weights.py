"""What loading, exporting and merging weights costs beside plain reading and copying.

    python -m benchmarks.weights [--report]

A model of the released layout is generated, in bfloat16 and files of 1 GB, with true names. All
files lie in the page cache, where there is room, so that the disk hides nothing we do; copies count
until they are on disk. Each speed is given beside that of the plain thing, measured in the same run
just before and just after.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree

import torch

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.schema import LoraConfig
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

SPLITS = ((2, 2), (2, 1), (4, 4), (4, 2))  # ranks, expert-parallel size
RANK_OF_ADAPTER = 16
ADAPTERS = {"attention": "attention", "attention and every expert": "attention,experts"}

Row = tuple[str, ...]


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


def measure_copy(name: str, work: Callable[[], Copy], output: Path) -> Row:
    """Write a folder, and copy it with cp before and after."""
    first = work()
    num_bytes = folder_size(output)
    plain = [copy_with_cp(output)]
    rmtree(output)
    copy = work()
    plain.append(copy_with_cp(output))
    rmtree(output)
    seconds, plain_seconds = min(first.seconds, copy.seconds), min(plain)
    return (
        name,
        f"{num_bytes / 1e9:.1f} GB",
        f"{seconds:.1f} s",
        f"{plain_seconds:.1f} s",
        f"{plain_seconds / seconds:.2f}",
        f"{max(first.rise, copy.rise) / 1e6:,.0f} MB",
        f"{max(first.highest, copy.highest) / 1e6:,.0f} MB",
    )


def folder_size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def copy_with_cp(folder: Path) -> float:
    """Seconds until a copy of a folder is on disk."""
    copy = folder.with_name("copy")
    started = time.perf_counter()
    subprocess.run(["cp", "-r", folder, copy], check=True)
    for file in copy.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    rmtree(copy)
    return seconds


def measure_copies(base: Path, folder: Path, gigabytes: float) -> list[Row]:
    """Export a stopped run and a live one, and merge two adapters."""
    shape = shape_of_size(gigabytes)
    checkpoint = make_run(folder / "run", base)
    write_checkpoint(checkpoint, shape, Repeated(), num_ranks=4, expert_size=2)
    output = folder / "output"
    rows = [
        measure_copy(
            "export of a run stopped on 4 ranks",
            lambda: run_ranks(export_run, 1, folder / "run", output)[0],
            output,
        )
    ]
    rmtree(folder / "run")
    rows.append(
        measure_copy(
            "export of a live run on 2 ranks",
            lambda: max(run_ranks(export_live, 2, output, gigabytes), key=lambda one: one.seconds),
            output,
        )
    )
    for name, targets in ADAPTERS.items():
        lora = LoraConfig(use_lora=True, lora_rank=RANK_OF_ADAPTER, lora_target_modules=targets)
        adapter = folder / targets
        write_adapter(adapter, shape, lora)
        work = lambda adapter=adapter: run_ranks(merge, 1, base, adapter, output)[0]  # noqa: E731
        rows.append(measure_copy(f"merge, adapter on {name}", work, output))
    return rows


def table(head: Row, rows: list[Row]) -> list[str]:
    """Rows as Markdown."""
    ruler = "|".join(["---", *["---:"] * (len(head) - 1)])
    return [
        f"| {' | '.join(head)} |",
        f"|{ruler}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def describe_run(sizes: list[float], largest: int) -> list[str]:
    """What was measured, on what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "peft"))
    command = " ".join(["python -m benchmarks.weights", *sys.argv[1:]])
    return [
        f"## Weights: {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, Python {platform.python_version()}, {versions}; shared with other "
        f"work, so compare within a row. Models in bfloat16: {sizes[0]:.1f} GB to load, "
        f"{sizes[1]:.1f} GB to write; their largest tensor has {largest / 1e6:.0f} MB.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", type=float, default=4, metavar="GB", help="size in bfloat16")
    parser.add_argument("--write", type=float, default=8, metavar="GB", help="size in bfloat16")
    parser.add_argument(
        "--folder", type=Path, help="where to work; six times the size written is needed"
    )
    add_report_flag(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranks.TIMEOUT_SECONDS = 3600
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        base = folder / "base"
        write_base(base, shape_of_size(arguments.load))
        sizes, largest = [folder_size(base)], largest_tensor(base)
        loads = measure_loads(base)
        rmtree(base)
        write_base(base, shape_of_size(arguments.write))
        sizes.append(folder_size(base))
        copies = measure_copies(base, folder, arguments.write)
    lines = describe_run([size / 1e9 for size in sizes], largest)
    head: Row = (
        "load",
        "bytes read / owned",
        "peak beside own part",
        "GB/s, all ranks",
        "time / raw",
    )
    lines += table(head, loads)
    head = ("command", "written", "time", "cp", "speed / cp", "memory taken", "memory in all")
    lines += table(head, copies)
    text = "\n".join(lines)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
