"""What watching a run costs: the router monitor, and each place that numbers go to.

    python -m benchmarks.watch [--steps N] [--report]

Two processes train the tiny model with split experts on rows of 1,024 tokens. Each part is timed in
the same steps as the training it watches, and stands beside the median step. The monitor's work
on a load of the released model's size (32 layers, 64 experts) is timed too: it grows with that size
only, while a step of the released model takes seconds.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.run_files import METRICS, ROUTER_LOAD
from hunyuan_train.config.schema import GuardianConfig
from hunyuan_train.json_lines import JsonLines, NoLines
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.collective_timers import timing_collectives
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.metrics import MetricsLog, open_metrics
from hunyuan_train.trainer.router_monitor import (
    RouterMonitor,
    find_alarms,
    measure_load,
)
from hunyuan_train.trainer.step import train_step
from tests.batches import make_batch
from tests.engines import router_terms, small_engine
from tests.ranks import run_ranks

ROW = [400, 300, 324]  # tokens of the samples in a row
NUM_NUMBERS = 60  # of a logged step
WARM_UP = 3
A13B_LOAD = (32, 64)


class Stopwatch:
    """Seconds of each part, step by step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - began)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(one[WARM_UP:]) for name, one in self.seconds.items()}


def watch_training(num_steps: int, folder: Path) -> dict[str, float]:
    """Median seconds of a step and of all that watches it, on this rank."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    engine = small_engine(stage=3, expert_size=2)
    rank = torch.distributed.get_rank()
    terms = router_terms(engine, 0.0, 0.0)
    log = JsonLines(folder / ROUTER_LOAD) if rank == 0 else NoLines()
    metrics = MetricsLog(folder, NoLines(), [])
    monitor = RouterMonitor(engine, terms, GuardianConfig(), log, metrics)
    generator = np.random.default_rng(rank)
    monitor.start(0)
    logs = open_logs(folder) if rank == 0 else {}
    numbers = {f"number_{index}": index / 7 for index in range(NUM_NUMBERS)}
    watch = Stopwatch()
    for step in range(1, num_steps + 1):
        batch = make_batch(generator, ROW)
        with watch.part("step"):
            train_step(engine, SFT, [batch], learning_rate=1e-4, routers=terms)
        torch.distributed.barrier()  # waiting for the other rank is the step's, not the monitor's
        with watch.part("monitor, every step"):
            monitor.check(step)
        with watch.part("monitor, a logged step"):
            monitor.measure(step)
        for name, tracker in logs.items():
            with watch.part(name):
                tracker.log(numbers, step)
    for tracker in logs.values():
        tracker.finish()
    batch = make_batch(generator, ROW)
    step = partial(train_step, engine, SFT, [batch], learning_rate=1e-4, routers=terms)
    return watch.medians() | {"timing a step's collectives": time_clock(step)}


def time_clock(step: Callable[[], object]) -> float:
    """Seconds that the clock itself takes to time all collectives of a step."""
    num_calls = 0

    @contextmanager
    def count() -> Iterator[None]:
        nonlocal num_calls
        num_calls += 1
        yield

    with timing_collectives(count):
        step()
    clock, rounds = StepClock(), 10_000
    began = time.perf_counter()
    for _ in range(rounds):
        with clock.part("communication"):
            pass
    return (time.perf_counter() - began) / rounds * num_calls


def open_logs(folder: Path) -> dict[str, MetricsLog]:
    """One log for each place that numbers go to."""
    places = {
        "metrics.jsonl": "none",
        "metrics.jsonl and TensorBoard": "tensorboard",
        "metrics.jsonl and wandb": "wandb",
    }
    logs = {}
    for name, report_to in places.items():
        own = folder / report_to
        own.mkdir()
        lines = JsonLines(own / METRICS)
        logs[name] = open_metrics(
            own, lines, report_to=report_to, run_name="watch", settings={}, notes={}
        )
    return logs


def time_large_load(num_rounds: int = 50) -> float:
    """Median seconds of judging and measuring one load of the released model's size."""
    generator = torch.Generator().manual_seed(0)
    profile, load = (torch.randint(900, 1100, A13B_LOAD, generator=generator) for _ in range(2))
    watch = Stopwatch()
    for _ in range(num_rounds):
        with watch.part("load"):
            find_alarms(load, profile, GuardianConfig(), top_k=8)
            measure_load(load, profile)
    return watch.medians()["load"]


def write_table(seconds: dict[str, float], large: float) -> str:
    """The result as Markdown."""
    lines = ["| Watching, beside a median step | | |", "|---|---:|---:|"]
    for name, value in seconds.items():
        lines.append(f"| {name} | {value * 1e3:.2f} ms | {value / seconds['step']:.2%} |")
    lines.append(f"| monitor on a load of 32 layers and 64 experts | {large * 1e3:.2f} ms | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    add_report_flag(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = run_ranks(watch_training, 2, arguments.steps, Path(folder))[0]
    table = write_table(seconds, time_large_load())
    machine = f"{platform.machine()}, 2 CPU cores, shared and noisy"
    head = f"## Watching: {date.today()}\n\n`python -m benchmarks.watch` on {machine}"
    show(f"{head}\n\n{table}\n", is_kept=arguments.report)


if __name__ == "__main__":
    main()
