"""The first minutes on a GPU: everything that nobody could measure without one, by one command.

    python -m benchmarks.gpu_first                    # one H100 or H200, under eight minutes
    python -m benchmarks.gpu_first --small            # scaled down, on a CPU: that it runs

Each part is a process of its own with a limit of time: one that fails or hangs ends no other. What
a part gives is appended to RESULTS.md (--output) as soon as it ends, a failure with its last lines.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import RESULTS
from hunyuan_train.shipped import DS_CONFIGS

MINUTES = 8.0
PART_SECONDS = 75.0  # of one part, its imports included
SLICE_SECONDS = 110.0
SMALL_TIMES = 8  # as long for each where it is only to be seen that all of it runs
LEAST_SECONDS = 15.0  # below it no part is begun
LAST_LINES = 15  # of a part that failed
LAYERS = 8
PARTS = (
    *("machine", "attention_kernels", "expert_kernels", "combining", "gating", "fused_kernels"),
    *("products", "decoding", "update", "recorder", "staging"),
)
FUSED = {
    "combine_impl": "fused_weighted_sum",
    "gate_up_impl": "fused",
    "async_split_plan": True,
}
SEGMENTS = "PYTORCH_ALLOC_CONF"


@dataclass(frozen=True, slots=True)
class Step:
    """One process."""

    name: str
    command: Sequence[str]
    seconds: float  # after which it is ended
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it."""

    text: str  # that it printed
    fault: str  # empty, or how it ended
    last_lines: str  # of what it said beside


def list_steps(folder: Path, *, is_small: bool) -> Iterator[Step]:
    """All that is asked, what decides most first.

    Args:
        folder: for files that steps read.
        is_small: scaled down, for a CPU.
    """
    small = ["--small"] if is_small else []
    for name in PARTS:
        yield Step(name, [sys.executable, "-m", "benchmarks.gpu_parts", name, *small], PART_SECONDS)
    yield from slices(folder, is_small=is_small)
    if find_spec("hunyuan_train.rehearsal"):
        yield rehearsed_slice(folder)


def slices(folder: Path, *, is_small: bool) -> Iterator[Step]:
    """The benchmark of one GPU of eight, by allocator and by the engine's fused settings."""
    flags = ["--layers", str(LAYERS), "--steps", "5"]
    if is_small:
        flags = ["--small", "--layers", "2", "--tokens", "64", "--steps", "1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "-m", "benchmarks.gpu_rank_slice", *flags]
    for is_expandable in (False, True):
        setting = f"expandable_segments:{is_expandable}"
        yield Step(f"slice, {setting}", command, SLICE_SECONDS, {SEGMENTS: setting})
    settings = json.loads((DS_CONFIGS / "zero3_ep.json").read_text(encoding="utf-8"))
    # A CPU has no kernels for the others.
    fused = {"gate_up_impl": FUSED["gate_up_impl"]} if is_small else FUSED
    settings["expert_parallel"] |= fused
    file = folder / "fused.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    yield Step(
        f"slice, {', '.join(fused)}",
        [*command, "--deepspeed", str(file)],
        SLICE_SECONDS,
        {SEGMENTS: "expandable_segments:True"},
    )


def rehearsed_slice(folder: Path) -> Step:
    """The same slice on a pretended GPU, for its bytes beside those of CUDA."""
    script = (
        "import sys\n"
        "from benchmarks.gpu_rank_slice import slice_shape\n"
        "from hunyuan_train.model.build import native_config\n"
        "native_config(slice_shape(int(sys.argv[2]), is_small=False)).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "slice"), str(LAYERS)], check=True)
    flags = {
        "model": folder / "slice",
        "gpus": 1,
        "gpu_memory": 80,
        "skew": 1,
        "max_seq_length": 4096,
        "optimizer": "lean",
        "learning_rate": 1e-5,
        "expert_parallel_size": 1,
        "deepspeed": DS_CONFIGS / "zero3_ep.json",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "hunyuan_train", "rehearse", *words, "--steps_only"]
    return Step("slice, rehearsed", command, SLICE_SECONDS)


def run_step(step: Step, seconds: float) -> Done:
    """Run a process and end all of it when its time is over."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            step.command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, **step.environment},
            start_new_session=True,
        )
        try:
            text, _ = process.communicate(timeout=seconds)
            fault = f"exit code {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            fault = f"ended after {seconds:.0f} s"
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
        said.seek(0)
        return Done(text, fault, "".join(said.readlines()[-LAST_LINES:]))


def report_step(step: Step, done: Done, seconds: float) -> str:
    """What a process gave, as Markdown."""
    lines = [f"**{step.name}**: {done.fault or 'done'}, {seconds:.1f} s\n", done.text.strip(), ""]
    if done.fault:
        lines += ["```", done.last_lines.strip(), "```", ""]
    return "\n".join(lines) + "\n"


def run_steps(steps: Iterator[Step], output: Path | None, *, minutes: float) -> list[str]:
    """Run steps until time is over, keeping what each gives at once.

    Returns:
        the names of those that failed or were left out.
    """
    deadline, lacking = time.monotonic() + 60 * minutes, []
    for step in steps:
        began = time.monotonic()
        left = deadline - began
        if left < LEAST_SECONDS:
            lacking.append(step.name)
            text = f"**{step.name}**: left out, {minutes:g} minutes are over\n\n"
        else:
            done = run_step(step, min(left, step.seconds))
            text = report_step(step, done, time.monotonic() - began)
            lacking += [step.name] if done.fault else []
        keep(text, output)
    return lacking


def keep(text: str, output: Path | None) -> None:
    """Print, and append to a file where one is named."""
    print(text, flush=True)
    if output:
        with output.open("a", encoding="utf-8") as file:
            file.write(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="scaled down, for a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="default: %(default)s")
    parser.add_argument("--only", help="parts whose names contain this")
    parser.add_argument(
        "--output", type=Path, help=f"append here; default: {RESULTS.name}, nowhere with --small"
    )
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.small else RESULTS)
    keep(f"\n## First minutes of a GPU: {date.today()}\n\n", output)
    with tempfile.TemporaryDirectory() as folder:
        steps = list_steps(Path(folder), is_small=arguments.small)
        wanted = (step for step in steps if not arguments.only or arguments.only in step.name)
        if arguments.small:
            wanted = (replace(step, seconds=SMALL_TIMES * step.seconds) for step in wanted)
        lacking = run_steps(wanted, output, minutes=arguments.minutes)
    if lacking:
        print(f"not done: {', '.join(lacking)}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
