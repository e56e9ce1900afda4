"""What frozen experts in 8 and 4 bits cost: at the start, and in each step.

    python -m benchmarks.expert_weights [--part load|step] [--gigabytes 4] [--report]

A base of the released layout is loaded on two ranks, each form beside bfloat16 in the same run, and
a base that is stored in FP8 as it is. Then one process trains adapters on attention, a step of one
form after the other, over and over.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.results import add_report_flag, show
from benchmarks.weights import Row, folder_size, table
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.expert_formats import GENTLEST_FIRST
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.assemble import build_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.trainer.step import train_step
from tests import ranks
from tests.batches import make_batch
from tests.measured import (
    Repeated,
    bfloat16_settings,
    load,
    shape_of_size,
    write_base,
    write_float8_base,
)
from tests.ranks import run_ranks

LAYER_GIGABYTES = 0.6  # of the model that is stepped: one layer
NUM_TOKENS, NUM_ROUNDS = 1024, 3


def measure_forms(base: Path) -> list[Row]:
    """Load experts in each form, split over two ranks; the worst rank counts."""
    rows, plain = [], 0.0
    write_float8_base(base, base / "fp8", resolve_base(str(base)))
    for form in (*GENTLEST_FIRST, "base"):
        loaded = run_ranks(load, 2, base / "fp8" if form == "base" else base, 2, form)
        seconds = max(rank.seconds for rank in loaded)
        plain = plain or seconds
        rows.append(
            (
                f"`{form}`" + (", in FP8 by channel" if form == "base" else ""),
                f"{max(rank.num_read / rank.num_owned for rank in loaded):.4f}",
                f"{max(rank.peak_beside for rank in loaded) / 2**20:,.0f} MiB",
                f"{seconds:.1f} s",
                f"{seconds / plain:.2f}",
            )
        )
        print(*rows[-1], sep=", ", file=sys.stderr)
    return rows


def time_steps() -> list[list[float]]:
    """Seconds of a step of every form, in turn, [rounds][forms]; the first round is left out."""
    start_process_group(timeout_minutes=5)
    torch.set_num_threads(1)
    settings, engines = bfloat16_settings(1), []
    for form in GENTLEST_FIRST:
        config = with_settings(
            RunConfig(), expert_weights=form, use_lora=True, gradient_checkpointing=True,
            optimizer="sgd",
        )  # fmt: skip
        shape = shape_of_size(LAYER_GIGABYTES)
        engine = build_engine(config, settings, shape, Repeated(), attention=PER_DOCUMENT)
        engine.train()
        engines.append(engine)
    batch = make_batch(np.random.default_rng(0), [NUM_TOKENS])
    rounds = []
    for _ in range(NUM_ROUNDS + 1):
        times = []
        for engine in engines:
            started = time.perf_counter()
            train_step(engine, SFT, [batch], learning_rate=1e-4)
            times.append(time.perf_counter() - started)
        rounds.append(times)
        print("steps:", *(f"{one:.2f} s" for one in times), file=sys.stderr)
    return rounds[1:]


def measure_steps() -> list[Row]:
    """Of each form the median over rounds of its step beside that of bfloat16 in the same round."""
    [rounds] = run_ranks(time_steps, 1)
    rows = []
    for index, form in enumerate(GENTLEST_FIRST):
        ratios = [times[index] / times[0] for times in rounds]
        seconds = median(times[index] for times in rounds)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append((f"`{form}`", f"{seconds:.2f} s", f"{median(ratios):.2f}", spread))
    return rows


def table_of_loads(gigabytes: float, folder: Path | None) -> list[str]:
    """What each form costs at the start."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        base = Path(name) / "base"
        write_base(base, shape_of_size(gigabytes))
        said = f"A base of {folder_size(base) / 1e9:.1f} GB in bfloat16, in the page cache, on"
        loads = measure_forms(base)
    columns = ("bytes read / owned", "peak beside own part", "time", "time / bf16")
    return [f"{said} two ranks:", "", *table(("experts", *columns), loads)]


def table_of_steps() -> list[str]:
    """What each form costs in a step."""
    head = ("experts", "step", "step / bf16", f"in {NUM_ROUNDS} rounds")
    return [
        f"A step of {NUM_TOKENS:,} tokens through one layer, with adapters on attention, "
        "recomputed, in one thread; ratios are of one round:",
        "",
        *table(head, measure_steps()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("load", "step"), help="default: both")
    parser.add_argument("--gigabytes", type=float, default=4, help="of the base in bfloat16")
    parser.add_argument("--folder", type=Path, help="where bases are written")
    add_report_flag(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranks.TIMEOUT_SECONDS = 3600
    before, tables = os.getloadavg()[0], []
    if arguments.part != "step":
        tables += table_of_loads(arguments.gigabytes, arguments.folder)
    if arguments.part != "load":
        tables += table_of_steps()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    command = " ".join(["python -m benchmarks.expert_weights", *sys.argv[1:]])
    lines = [
        f"## Experts in 8 and 4 bits: {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, Python {platform.python_version()}, {versions}; a load of {before:.0f} "
        f"from other work at its start, {os.getloadavg()[0]:.0f} at its end.",
        "",
        *tables,
    ]
    show("\n".join(lines), is_kept=arguments.report)


if __name__ == "__main__":
    main()
