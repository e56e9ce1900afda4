"""What a start costs until its first step is done, beside TRL's: processor time of all processes.

    python -m benchmarks.start [--rounds 3] [--ranks 1] [--before FOLDER] [--report]

The bundled tiny model on one document, in turns; each contender starts as its users start it, ours
with launcher, agent and ranks. A round that nobody counts comes first, so that bytecode, compiled
extensions and data are there. Processor time is read when the first step has been logged, and all
processes are then ended.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers import REPOSITORY, RIVAL, environment_of, write_model
from benchmarks.results import add_report_flag, show
from hunyuan_train.config.run_files import METRICS
from hunyuan_train.families.hunyuan_v1_moe import TINY
from tests.clients.environments import client_python

POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 300.0
TICKS = os.sysconf("SC_CLK_TCK")
NUM_TOKENS = 512


@dataclass
class Contender:
    """A command, and how one sees that its first step is done."""

    name: str
    make_command: Callable[[Path], list[str]]  # for a new output folder
    environment: dict[str, str]
    code: Path
    mark: str  # a file of the output folder that is not empty once the step is done
    cpu_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def start(self, folder: Path) -> None:
        """Start, wait for the first step, and end everything."""
        command = self.make_command(folder)
        began = time.perf_counter()
        with (folder.parent / f"{folder.name}.txt").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, cwd=self.code
            )
        try:
            wait_for(folder / self.mark, process, Path(log.name))
            self.seconds.append(time.perf_counter() - began)
            self.cpu_seconds.append(sum(map(cpu_seconds, descendants(process.pid))))
        finally:
            for one in descendants(process.pid):
                os.kill(one, signal.SIGKILL)
            process.wait()


def wait_for(mark: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (mark.exists() and mark.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no first step: {log.read_text()[-2000:]}")
        time.sleep(POLL_SECONDS)


def read_stat(process_id: int) -> list[str]:
    """Fields of /proc/ID/stat behind the name of the process, which may hold anything."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(process_id: int) -> float:
    """Its own, and those of its children that have ended."""
    return sum(map(int, read_stat(process_id)[11:15])) / TICKS


def descendants(process_id: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int(read_stat(int(path.name))[1])
        except OSError:
            continue
    found = [process_id]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def our_command(text: Path, num_ranks: int) -> Callable[[Path], list[str]]:
    words = {
        "recipe": "tiny",
        "train_data_file": text,
        "eval_data_file": "none",
        "eval_steps": 0,
        "max_seq_length": NUM_TOKENS,
        "max_steps": 20,
        "num_processes": num_ranks,
        "logging_steps": 1,
        "sample_answers": False,
    }
    flags = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    return lambda folder: [sys.executable, "train.py", *flags, "--output_dir", str(folder)]


def their_command(python: str, settings: dict[str, Any]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        folder.mkdir()
        path = folder / "settings.json"
        path.write_text(json.dumps(settings | {"output_dir": str(folder)}))
        return [python, str(RIVAL), str(path)]

    return make


def make_contenders(folder: Path, arguments: argparse.Namespace) -> Iterator[Contender]:
    write_model(folder / "model", TINY)
    text = folder / "text.jsonl"
    text.write_text(json.dumps({"text": "one two three four five " * 20 * NUM_TOKENS}) + "\n")
    ids = list(range(100, 100 + NUM_TOKENS))
    settings = {
        "kind": "trl",
        "model": str(folder / "model"),
        "rows": [{"input_ids": ids, "labels": ids}] * 20,
        "steps": 20,
        "learning_rate": 1e-4,
        "adam_beta2": 0.95,
        "weight_decay": 0.01,
        "optimizer": "adamw_torch_fused",
        "is_checkpointed": False,
    }
    python = client_python("trl")
    yield Contender(
        "TRL SFTTrainer", their_command(python, settings), environment_of(python), REPOSITORY,
        "first_step",
    )  # fmt: skip
    checkouts = {"ours": REPOSITORY}
    if arguments.before:
        checkouts["ours (before)"] = arguments.before
    for name, code in checkouts.items():
        command = our_command(text, arguments.ranks)
        yield Contender(name, command, environment_of(sys.executable), code, METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1, help="of ours")
    parser.add_argument("--before", type=Path, help="folder of an earlier commit, to compare")
    add_report_flag(parser)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = list(make_contenders(folder, arguments))
        for number in range(arguments.rounds + 1):
            for place, one in enumerate(contenders):
                one.start(folder / f"{place}-{number}")
                print(f"{one.name}: {one.cpu_seconds[-1]:.1f} s of CPU", file=sys.stderr)
    first = median(contenders[0].cpu_seconds[1:])
    command = " ".join(["python -m benchmarks.start", *sys.argv[1:]])
    lines = [
        f"## Start to step 1: {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, load "
        f"{load:.1f} before and {os.getloadavg()[0]:.1f} behind; the tiny model, one thread a "
        f"process, medians of {arguments.rounds}.",
        "",
        "| start | CPU, all processes | ratio | until the step is done |",
        "|---|---:|---:|---:|",
    ]
    for one in contenders:
        cpu, wall = median(one.cpu_seconds[1:]), median(one.seconds[1:])
        lines.append(f"| {one.name} | {cpu:.1f} s | {cpu / first:.2f} | {wall:.1f} s |")
    show("\n".join([*lines, ""]), is_kept=arguments.report)


if __name__ == "__main__":
    main()
